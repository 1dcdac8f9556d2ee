// A CUDA device made of CPU memory, for a torch that was built without CUDA; see pretend_cuda.py.
//
// Registered here: a device guard, CUDA's hooks, and a boxed fallback for the dispatch key CUDA. The
// fallback runs every operator that has no CUDA kernel, which in this build are almost all, on a CPU
// view of the same memory. It refuses operands on two devices as CUDA does. The library has to be
// loaded before libtorch asks whether there is a CUDA device.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>
using namespace at;
using c10::IValue;
namespace {
const Device GPU(DeviceType::CUDA, 0);

// --- one device, one stream -----------------------------------------------------------------------

struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device exchangeDevice(Device) const override { return GPU; }
  Device getDevice() const override { return GPU; }
  c10::Stream getStream(Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, GPU); }
  c10::Stream getNewStream(Device d, int = 0) const override { return getStream(d); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream(GPU); }
};
c10::impl::DeviceGuardImplRegistrar guard(DeviceType::CUDA, new Guard());

struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
};
REGISTER_CUDA_HOOKS(CUDAHooks)

// --- the same memory under the other device's name -----------------------------------------------

Tensor over(Storage storage, Device device, const Tensor& like) {
  auto key = device.is_cuda() ? DispatchKey::CUDA : DispatchKey::CPU;
  auto t = at::detail::make_tensor<TensorImpl>(std::move(storage), DispatchKeySet(key), like.dtype());
  t.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return t;
}

Storage relabelled(const Storage& s, Device device) {
  auto* keep = new Storage(s);
  DataPtr p(s.mutable_data(), keep, [](void* x) { delete static_cast<Storage*>(x); }, device);
  return Storage(Storage::use_byte_size_t(), s.nbytes(), std::move(p), c10::GetCPUAllocator(), true);
}

void follow(const Tensor& original, const Tensor& lowered) {  // an operator may have resized it
  auto* impl = original.unsafeGetTensorImpl();
  if (lowered.storage().data() != original.storage().data())
    impl->set_storage_keep_dtype(relabelled(lowered.storage(), GPU));
  impl->set_sizes_and_strides(lowered.sizes(), lowered.strides(), lowered.storage_offset());
}

Tensor on_cpu(const Tensor& t) { return over(relabelled(t.storage(), Device(kCPU)), Device(kCPU), t); }

Tensor on_gpu(const Tensor& t, const std::vector<Tensor>& inputs) {
  for (const auto& x : inputs)  // a view of an operand shares its storage
    if (t.storage().nbytes() > 0 && x.storage().data() == t.storage().data()) {
      auto view = at::detail::make_tensor<TensorImpl>(  // in inference mode what x is, it is too
          TensorImpl::VIEW, Storage(x.storage()), x.key_set(), t.dtype());
      view.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
      return view;
    }
  return over(relabelled(t.storage(), GPU), GPU, t);
}

// --- any operator ---------------------------------------------------------------------------------

// Indexing takes indices from the host.
bool takes_both(const std::string& name) {
  return name == "aten::index.Tensor" || name == "aten::index_put_" || name == "aten::_index_put_impl_" ||
         name == "aten::index_put" || name == "aten::index.Tensor_out" || name == "aten::index_put.out" ||
         name == "aten::_index_put_impl.out";
}

// What raises on CUDA under torch.use_deterministic_algorithms, of the operators that language
// models use; the list is in its docstring.
void alert(const std::string& name, const std::vector<Tensor>& inputs) {
  const bool sums = name.rfind("aten::cumsum", 0) == 0 && !inputs.empty() && inputs[0].is_floating_point();
  if (sums || name.rfind("aten::nll_loss2d", 0) == 0 || name.rfind("aten::histc", 0) == 0 ||
      name.rfind("aten::put_", 0) == 0 || name.rfind("aten::median.dim", 0) == 0)
    at::globalContext().alertNotDeterministic(name);
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto n = schema.arguments().size(), begin = stack->size() - n;
  std::string name = schema.name();
  if (!schema.overload_name().empty()) name += "." + schema.overload_name();
  std::vector<IValue> given(stack->begin() + begin, stack->end());
  std::vector<Tensor> inputs, outside;
  std::optional<Device> wanted;
  auto lower = [&](const Tensor& t) {
    if (!t.defined()) return t;
    if (t.is_cuda()) { inputs.push_back(t); return on_cpu(t); }
    if (t.dim() > 0) outside.push_back(t);
    return t;
  };
  std::vector<Tensor> lowered(n);
  for (size_t i = 0; i < n; i++) {
    auto& v = (*stack)[begin + i];
    if (v.isTensor()) { lowered[i] = lower(v.toTensor()); v = lowered[i]; }
    else if (v.isTensorList()) {
      c10::List<Tensor> l; for (Tensor t : v.toTensorList()) l.push_back(lower(t)); v = l;
    } else if (v.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> l;
      for (std::optional<Tensor> t : v.toOptionalTensorList())
        l.push_back(t.has_value() && t->defined() ? std::optional<Tensor>(lower(*t)) : std::nullopt);
      v = l;
    } else if (v.isDevice()) { wanted = v.toDevice(); if (wanted->is_cuda()) v = Device(kCPU); }
  }
  TORCH_CHECK(outside.empty() || inputs.empty() || takes_both(name),
      "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (", name, ")");
  TORCH_CHECK(outside.empty() || !takes_both(name) || given[0].toTensor().is_cuda(),
      "indices should be either on cpu or on the same device as the indexed tensor (cpu)");
  if (!inputs.empty()) alert(name, inputs);
  op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
  const bool stays = wanted.has_value() && wanted->is_cpu();
  for (size_t a = 0; a < n; a++) {
    const auto* own = schema.arguments()[a].alias_info();
    if (own && own->isWrite() && lowered[a].defined() && given[a].toTensor().is_cuda())
      follow(given[a].toTensor(), lowered[a]);
  }
  auto raise = [&](const Tensor& t) {
    return !t.defined() || stays || t.is_cuda() ? t : on_gpu(t, inputs);
  };
  const auto& returns = schema.returns();
  const auto first = stack->size() - returns.size();
  for (size_t i = 0; i < returns.size(); i++) {
    auto& v = (*stack)[first + i];
    const auto* alias = returns[i].alias_info();
    if (alias && alias->isWrite() && v.isTensor()) {
      for (size_t a = 0; a < n; a++) {
        const auto* own = schema.arguments()[a].alias_info();
        if (!own || !own->isWrite() || own->beforeSets() != alias->beforeSets()) continue;
        v = given[a];
        break;
      }
    } else if (v.isTensor()) v = raise(v.toTensor());
    else if (v.isTensorList()) {
      c10::List<Tensor> l; for (Tensor t : v.toTensorList()) l.push_back(raise(t)); v = l;
    }
  }
}

// Between the devices, so that the fallback does not refuse it.
Tensor& copy_(Tensor& self, const Tensor& src, bool) {
  Tensor to = self.is_cuda() ? on_cpu(self) : self, from = src.is_cuda() ? on_cpu(src) : src;
  to.copy_(from);
  return self;
}

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("copy_", &copy_);
}
