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
#include <string>
#include <tuple>
#include <unordered_map>
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

// Calls an operator by the names of its arguments; those that are not given have their defaults. Linking snnkern has
// registered it.
torch::jit::Stack call(const char* name, const std::unordered_map<std::string, torch::IValue>& given) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  torch::jit::Stack stack;
  for (const c10::Argument& argument : op.schema().arguments()) {
    const auto found = given.find(argument.name());
    const bool is_given = found != given.end();
    TORCH_CHECK(is_given || argument.default_value(), name, " needs ", argument.name());
    stack.push_back(is_given ? found->second : *argument.default_value());
  }
  op.callBoxed(stack);
  return stack;
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
    const auto results = call("snnkern::lif_forward", {{"x_seq", current}, {"tau", 2.0}, {"surrogate", "atan"}});
    const Tensor fired = results[0].toTensor(), v = results[1].toTensor();
    (fired.sum() + v.sum()).backward();
    std::cout << "neuron:  " << fired.mean().item<double>() << " spikes a step\n";

    write(argv[3], std::make_tuple(spikes.detach(), x.grad(), fired.detach(), current.grad()));
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
