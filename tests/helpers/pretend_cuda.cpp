// A CUDA device made of CPU memory, for a torch that was built without CUDA; see pretend_cuda.py.
//
// Registered here: a device guard, CUDA's hooks, and a boxed fallback for the dispatch key CUDA. The
// fallback runs every operator that has no CUDA kernel, which in this build are almost all, on a CPU
// view of the same memory. It refuses operands on two devices as CUDA does. The library has to be
// loaded before libtorch asks whether there is a CUDA device. There are as many devices as torchrun
// starts ranks on a machine, and each thread has a current one, at first the first.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>
#include <mutex>
#include <set>
#include "pretend_cuda.h"
using namespace at;
using c10::IValue;
namespace {

// --- devices, each with one stream ----------------------------------------------------------------

thread_local DeviceIndex current = 0;

DeviceIndex number() {  // asked anew each time: a forked rank gets torchrun's variables later
  const char* ranks = std::getenv("LOCAL_WORLD_SIZE");
  return ranks ? std::max(1, std::atoi(ranks)) : 1;
}

DeviceIndex switch_to(DeviceIndex index) {
  const auto before = current;
  TORCH_CHECK(index < number(), "CUDA error: invalid device ordinal: ", int(index), " of ", int(number()));
  if (index >= 0) current = index;
  return before;
}

// CUDA lets a rank use all GPUs of its machine. With PRETEND_OWN_GPU it may use its own alone: a thread
// that has not chosen it takes the memory of the first.
bool is_own(Device device) {
  const char* rank = std::getenv("PRETEND_OWN_GPU") ? std::getenv("LOCAL_RANK") : nullptr;
  return !rank || device.index() == std::atoi(rank);
}

Device gpu(DeviceIndex index) { return Device(DeviceType::CUDA, index < 0 ? current : index); }

struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device exchangeDevice(Device d) const override { return gpu(switch_to(d.index())); }
  Device getDevice() const override { return gpu(current); }
  void setDevice(Device d) const override { switch_to(d.index()); }
  void uncheckedSetDevice(Device d) const noexcept override { if (d.index() >= 0) current = d.index(); }
  DeviceIndex deviceCount() const noexcept override { return number(); }
  c10::Stream getStream(Device d) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, gpu(d.index())); }
  c10::Stream getNewStream(Device d, int = 0) const override { return getStream(d); }
  c10::Stream exchangeStream(c10::Stream s) const noexcept override { return getStream(s.device()); }
  // everything is done when it returns
  void record(void**, const c10::Stream&, DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(DeviceIndex) const override {}
};
c10::impl::DeviceGuardImplRegistrar guard(DeviceType::CUDA, new Guard());

// Pinned memory is the CPU's; which it is, is kept.
std::mutex pinned_mutex;
std::set<const void*> pinned;

struct PinnedAllocator final : Allocator {
  DataPtr allocate(size_t n) override {
    auto* own = new DataPtr(c10::GetCPUAllocator()->allocate(n));
    std::lock_guard lock(pinned_mutex);
    pinned.insert(own->get());
    return DataPtr(own->get(), own, &release, Device(kCPU));
  }
  static void release(void* x) {
    auto* own = static_cast<DataPtr*>(x);
    std::lock_guard lock(pinned_mutex);
    pinned.erase(own->get());
    delete own;
  }
  DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
} pinned_allocator;

struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return number(); }
  void setCurrentDevice(DeviceIndex d) const override { switch_to(d); }
  DeviceIndex getCurrentDevice() const override { return current; }
  DeviceIndex exchangeDevice(DeviceIndex d) const override { return switch_to(d); }
  DeviceIndex maybeExchangeDevice(DeviceIndex d) const override { return switch_to(d); }
  DeviceIndex current_device() const override { return current; }
  int getNumGPUs() const override { return number(); }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  bool isPinnedPtr(const void* data) const override {
    std::lock_guard lock(pinned_mutex);
    return data && pinned.count(data);
  }
};
REGISTER_CUDA_HOOKS(CUDAHooks)

// --- the same memory under the other device's name -----------------------------------------------

Tensor over(Storage storage, Device device, const Tensor& like) {
  auto key = device.is_cuda() ? DispatchKey::CUDA : DispatchKey::CPU;
  auto t = at::detail::make_tensor<TensorImpl>(std::move(storage), DispatchKeySet(key), like.dtype());
  t.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return t;
}

DataPtr memory_of(const Storage& s, Device device) {
  auto* keep = new Storage(s);
  return DataPtr(s.mutable_data(), keep, [](void* x) { delete static_cast<Storage*>(x); }, device);
}

Storage relabelled(const Storage& s, Device device) {
  return Storage(Storage::use_byte_size_t(), s.nbytes(), memory_of(s, device), c10::GetCPUAllocator(), true);
}

// An operator may have resized it. All tensors on its storage then see the new memory, and what it
// held before is freed: FSDP frees gathered parameters by a resize to 0.
void follow(const Tensor& original, const Tensor& lowered) {
  auto* impl = original.unsafeGetTensorImpl();
  auto* storage = original.storage().unsafeGetStorageImpl();
  if (lowered.storage().data() != original.storage().data()) {
    storage->set_data_ptr_noswap(memory_of(lowered.storage(), original.device()));
    storage->set_nbytes(lowered.storage().nbytes());
  }
  impl->set_sizes_and_strides(lowered.sizes(), lowered.strides(), lowered.storage_offset());
}

Tensor on_gpu(const Tensor& t, const std::vector<Tensor>& inputs, Device device) {
  for (const auto& x : inputs)  // a view of an operand shares its storage
    if (t.storage().nbytes() > 0 && x.storage().data() == t.storage().data()) {
      auto view = at::detail::make_tensor<TensorImpl>(  // in inference mode what x is, it is too
          TensorImpl::VIEW, Storage(x.storage()), x.key_set(), t.dtype());
      view.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
      return view;
    }
  return over(relabelled(t.storage(), device), device, t);
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
      "Expected all tensors to be on the same device, but found at least two devices, ",
      inputs.empty() ? gpu(-1) : inputs[0].device(), " and cpu! (", name, ")");
  TORCH_CHECK(outside.empty() || !takes_both(name) || given[0].toTensor().is_cuda(),
      "indices should be either on cpu or on the same device as the indexed tensor (cpu)");
  for (const auto& x : inputs)
    TORCH_CHECK(x.device() == inputs[0].device(), "Expected all tensors to be on the same device, but found at "
        "least two devices, ", inputs[0].device(), " and ", x.device(), "! (", name, ")");
  if (!inputs.empty()) alert(name, inputs);
  op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
  const Device device = wanted.has_value() && wanted->is_cuda() ? gpu(wanted->index())
      : inputs.empty() ? gpu(-1) : inputs[0].device();
  TORCH_CHECK(device.index() < number(), "CUDA error: invalid device ordinal: ", device);
  TORCH_CHECK(is_own(device), "this rank computes on another rank's GPU, ", device, " (", name, ")");
  const bool stays = wanted.has_value() && wanted->is_cpu();
  for (size_t a = 0; a < n; a++) {
    const auto* own = schema.arguments()[a].alias_info();
    if (own && own->isWrite() && lowered[a].defined() && given[a].toTensor().is_cuda())
      follow(given[a].toTensor(), lowered[a]);
  }
  auto raise = [&](const Tensor& t) {
    return !t.defined() || stays || t.is_cuda() ? t : on_gpu(t, inputs, device);
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

// --- a tensor on another's storage, which is the very same afterwards -------------------------------

Tensor& set_at(Tensor& self, Storage source, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  TORCH_CHECK(source.device() == self.device(), "storage is on ", source.device(), ", the tensor on ", self.device());
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  std::vector<int64_t> strides(stride.vec());
  if (stride.empty() && !size.empty()) {
    strides.assign(size.size(), 1);
    for (size_t i = size.size() - 1; i > 0; i--) strides[i - 1] = strides[i] * std::max<int64_t>(size[i], 1);
  }
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, strides, offset);
  return self;
}
Tensor& set_storage(Tensor& self, Storage source) {
  const auto length = static_cast<int64_t>(source.nbytes() / self.element_size());
  return set_at(self, std::move(source), 0, {length}, {1});
}
Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_at(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

}  // namespace

Tensor on_cpu(const Tensor& t) { return over(relabelled(t.storage(), Device(kCPU)), Device(kCPU), t); }

extern "C" {
void pretend_set_device(int index) { switch_to(index); }
int pretend_device() { return current; }
int pretend_device_count() { return number(); }
void pretend_resize(StorageImpl* storage, int64_t size) {  // as THPStorage's resize_, which needs CUDA
  Storage to(Storage::use_byte_size_t(), size, c10::GetCPUAllocator()->allocate(size), c10::GetCPUAllocator(), true);
  std::memcpy(to.mutable_data(), storage->data(), std::min<size_t>(size, storage->nbytes()));
  storage->set_data_ptr_noswap(memory_of(to, storage->device()));
  storage->set_nbytes(size);
}
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("copy_", &copy_);
  m.impl("record_stream", +[](Tensor&, c10::Stream) {});  // no stream is ever behind
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Storage_storage_offset", &set_at);
  m.impl("set_.source_Tensor", &set_tensor);
}
