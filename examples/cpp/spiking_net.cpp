// Runs a network that Python saved, and a neuron called directly, forward and backward, without Python in the process:
//
//   spiking_net net.pt x.pt out.pt
//
// net.pt   torch.jit.save(torch.jit.script(net), "net.pt"), a network of layers and snnkern.nn modules
// x.pt     torch.save(x, "x.pt"), its input [T, N, ...], on the device of the network
// out.pt   becomes a tuple for torch.load: spikes and gradient in x of the network, and the same of the neuron
#include <torch/script.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <tuple>
#include <vector>

namespace {

using torch::Tensor;

torch::IValue read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file, "cannot read ", path);
  return torch::jit::pickle_load(std::vector<char>(std::istreambuf_iterator<char>(file), {}));
}

void write(const char* path, const torch::IValue& value) {
  const std::vector<char> bytes = torch::jit::pickle_save(value);
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// torch.ops.snnkern.lif_forward, found by its name: linking snnkern has registered it. Its schema is this signature.
std::tuple<Tensor, Tensor> lif(const Tensor& x_seq, double tau) {
  using Signature = std::tuple<Tensor, Tensor>(
      const Tensor& x_seq, const std::optional<Tensor>& v_init, double tau, bool decay_input, double v_threshold,
      std::optional<double> v_reset, bool detach_reset, c10::string_view surrogate,
      at::OptionalArrayRef<double> surrogate_params, bool store_v_seq, bool spiking,
      const std::optional<Tensor>& decay_tensor, const std::optional<Tensor>& v_threshold_tensor,
      const std::optional<Tensor>& v_reset_tensor);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("snnkern::lif_forward", "").typed<Signature>();
  return op.call(x_seq, std::nullopt, tau, true, 1.0, 0.0, false, "atan", std::nullopt, false, true, std::nullopt,
                 std::nullopt, std::nullopt);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: spiking_net net.pt x.pt out.pt\n";
    return 2;
  }
  try {
    torch::jit::Module net = torch::jit::load(argv[1]);
    const Tensor x = read(argv[2]).toTensor().requires_grad_();

    const Tensor spikes = net.forward({x}).toTensor();
    spikes.sum().backward();
    std::cout << "network: " << spikes.mean().item<double>() << " spikes a step\n";

    const Tensor current = (3 * x).detach().requires_grad_();
    const auto [fired, v] = lif(current, 2.0);
    (fired.sum() + v.sum()).backward();
    std::cout << "neuron:  " << fired.mean().item<double>() << " spikes a step\n";

    write(argv[3], std::make_tuple(spikes.detach(), x.grad(), fired.detach(), current.grad()));
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
