"""Checks and times the norm kernels on their own: python measure.py norm.so"""
import ctypes, math, statistics, sys
import torch, torch.nn.functional as F
lib = ctypes.CDLL(sys.argv[1])
lib.norm_run.restype = ctypes.c_char_p
P, I64, I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
lib.norm_run.argtypes = [I, I, I, ctypes.POINTER(P), I64, I64, I64, I64, I64, I, P]
D = "cuda"
EPS = 1e-5

def median_ms(f, n=15):
    f(); f(); torch.cuda.synchronize(); torch.cuda._sleep(8_000_000)
    pairs = []
    for _ in range(n):
        b, e = torch.cuda.Event(True), torch.cuda.Event(True)
        b.record(); f(); e.record(); pairs.append((b, e))
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in pairs)

class Case:
    def __init__(s, T, B, C, H, W, dtype, last, residual=False, offset=1.0, batch_first=False):
        s.T, s.B, s.C, s.S, s.last = T, B, C, H * W, last
        s.half = int(dtype == torch.bfloat16)
        N = B * C * s.S
        s.N = N
        shape = (T, B, H, W, C) if last else (T, B, C, H, W)
        if batch_first: shape = (shape[1], shape[0], *shape[2:])
        s.inner = N // B if batch_first else N
        s.bf = batch_first
        g = torch.Generator(device=D).manual_seed(1)
        mean = torch.randn(C, device=D, generator=g) * offset
        mean = mean if last else mean.view(C, 1, 1)
        s.x = (torch.randn(shape, device=D, generator=g) * 1.7 + mean).to(dtype)
        s.gs = torch.randn(shape, device=D, generator=g).to(dtype)
        s.w = 1 + 0.2 * torch.randn(C, device=D, generator=g)
        s.b = 0.5 + 0.3 * torch.randn(C, device=D, generator=g)
        s.spike, s.gx, s.gy = torch.empty_like(s.x), torch.empty_like(s.x), torch.empty_like(s.x)
        s.st, s.sums = torch.zeros(3, C, device=D), torch.zeros(2, C, device=D)
        s.partial = torch.zeros(3 * 1024 * C, device=D)
        s.v = torch.empty(N, device=D)
        s.res = torch.randn(shape, device=D, generator=g).to(dtype) if residual else None
        s.ck = torch.empty(max(1, (T - 1) // 16) * N, device=D) if T > 16 else None
    def run(s, what, number=0, x=None, gs=None, gx=None, spike=None):
        ts = [x if x is not None else s.x, spike if spike is not None else s.spike, gs if gs is not None else s.gs, gx if gx is not None else s.gx,
              s.st, s.sums, s.partial, s.w, s.b, s.v, s.res, s.ck]
        p = (P * 12)(*[t.data_ptr() if t is not None else None for t in ts])
        e = lib.norm_run(what, s.half, number, p, s.T, s.N, s.inner, s.C, 1 if s.last else s.S, 1, torch.cuda.current_stream().cuda_stream)
        assert e is None, e
    def forward(s): s.run(0); s.run(1)
    def backward(s, number=0):
        if s.res is None: s.run(2, number); s.run(3, number)
        else: s.run(4, gx=s.gy); s.run(5, gs=s.gy)
    def reference(s):
        ch = lambda v: v if s.last else v.view(-1, 1, 1)
        dims = (0, 1, 2, 3) if s.last else (0, 1, 3, 4)
        x, w, b = s.x.double(), ch(s.w.double()), ch(s.b.double())
        n = x.numel() // s.C
        mean, var = x.mean(dims), x.var(dims, unbiased=False)
        inv = ch((var + EPS).rsqrt()); xhat = (x - ch(mean)) * inv
        y = xhat * w + b
        if s.res is not None: y = y + s.res.double()
        gs = s.gs.double()
        if s.bf: y, gs = y.transpose(0, 1), gs.transpose(0, 1)
        v = torch.zeros_like(y[0]); h, k = torch.empty_like(y), torch.empty_like(y)
        for t in range(s.T):
            h[t] = v + (y[t] - v) / 2; k[t] = (h[t] >= 1).double(); v = (1 - k[t]) * h[t]
        gv, gy = torch.zeros_like(v), torch.empty_like(y)
        for t in reversed(range(s.T)):
            sg = 1 / (1 + (math.pi * (h[t] - 1)) ** 2)
            gv = 0.5 * ((gs[t] - gv * h[t]) * sg + gv * (1 - k[t])); gy[t] = gv
        ok = torch.ones_like(y)
        if s.bf: gy, k = gy.transpose(0, 1), k.transpose(0, 1)
        gg, gb = (gy * xhat).sum(dims), gy.sum(dims)
        gx = w * inv * (gy - ch(gb) / n - xhat * ch(gg) / n)
        return k, gx, gg, gb, mean, var
    def check(s):
        k, gx, gg, gb, mean, var = s.reference()
        s.spike.fill_(7); s.gx.fill_(float("nan"))
        s.forward(); s.backward()
        rs = (s.spike, s.gx, s.sums, s.st)
        first = [r.clone() for r in rs]
        s.forward(); s.backward(1 if s.res is None else 0)
        number = (s.gx.double() - first[1].double()).abs().max().item()
        s.forward(); s.backward()
        td = 1 if s.bf else 0
        agree = (s.spike.double() == k).all(td, keepdim=True)
        rel = lambda a, b: ((a.double() - b).norm() / b.norm()).item()
        out = dict(rate=k.mean().item(), differ=(~agree).double().mean().item(), gx=rel(s.gx * agree, gx * agree), gw=rel(s.sums[1], gg), gb=rel(s.sums[0], gb),
                   mean=rel(s.st[0], mean), var=rel(s.st[1], var), by_number=number)
        return " ".join(f"{a} {v:.1e}" for a, v in out.items()) + f" same {all(torch.equal(a, b) for a, b in zip(first, rs))}"

print(torch.cuda.get_device_name(), torch.__version__, flush=True)
if sys.argv[2] == "check":
    for size in [(4, 8, 64, 14, 14), (3, 3, 5, 7, 7), (16, 4, 6, 6, 6), (5, 2, 1, 9, 9), (33, 3, 12, 4, 4), (4, 32, 256, 14, 14), (4, 64, 1000, 1, 1), (4, 32, 64, 56, 56), (1, 2, 3, 1, 1)]:
        for dtype in (torch.float32, torch.bfloat16):
            for last in (True, False):
                for res in (False, True):
                    try: print(size, str(dtype)[6:], "last" if last else "cont", "res" if res else "", Case(*size, dtype, last, res).check(), flush=True)
                    except Exception as e: print(size, dtype, last, res, "FAILED", repr(e)[:300], flush=True)
    print("batch first", Case(4, 8, 64, 14, 14, torch.float32, True, batch_first=True).check(), Case(4, 8, 64, 14, 14, torch.float32, False, batch_first=True).check(), flush=True)
    print("far", Case(4, 32, 64, 28, 28, torch.float32, True, offset=1e4).check(), Case(4, 32, 64, 28, 28, torch.float32, False, offset=1e4).check(), flush=True)
else:
    for size in [(4, 64, 64, 64, 64), (16, 32, 128, 32, 32), (4, 32, 64, 56, 56), (4, 32, 256, 14, 14), (4, 32, 512, 7, 7), (4, 8, 64, 8, 8)]:
        for dtype in (torch.float32, torch.bfloat16):
            for last in (True, False):
                c = Case(*size, dtype, last)
                copy = lambda: median_ms(lambda: c.spike.copy_(c.x)) / 2
                copy(); unit = min(copy(), copy())
                p = lambda f: median_ms(f) / unit
                x4 = c.x.flatten(0, 1); x4 = (x4.permute(0, 3, 1, 2) if last else x4).detach().requires_grad_()
                rm, rv, w, b, g = torch.zeros(c.C, device=D), torch.ones(c.C, device=D), c.w.clone().requires_grad_(), c.b.clone().requires_grad_(), torch.randn_like(x4)
                bn = lambda: F.batch_norm(x4, rm, rv, w, b, True, 0.1, EPS)
                y = bn()
                with torch.no_grad(): t1 = p(bn)
                t2 = p(lambda: torch.autograd.grad(y, (x4, w, b), g, retain_graph=True))
                k = [p(lambda i=i: c.run(i)) for i in range(4)]
                f, bw = p(c.forward), p(c.backward)
                n = [p(lambda i=i: c.run(i, 1)) for i in (2, 3)]
                whole = [p(lambda: c.run(4, gx=c.gy)), p(lambda: c.run(5, gs=c.gy))]
                plain = [p(lambda: c.run(7)), p(lambda: c.run(6))]
                fm = lambda v: " ".join(f"{q:.2f}" for q in v)
                print(f"{size} {str(dtype)[6:]} {'last' if last else 'cont'} pass {unit*1e3:.1f}us fwd {f:.2f} bwd {bw:.2f} both {f+bw:.2f} | kernels {fm(k)} | number {fm(n)} | whole {fm(whole)} | lif {fm(plain)} | torch norm {t1:.2f} {t2:.2f}", flush=True)
                del c, x4, y; torch.cuda.empty_cache()
