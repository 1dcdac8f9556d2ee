// NCCL on the pretended CUDA device: the collectives of torch.distributed on CUDA tensors, by gloo.
//
// Under backend "nccl" (pretend_nccl.py) a process group has a backend for CUDA alone, which is gloo.
// Gloo takes CPU tensors, so every collective passes it CPU views of the same memory, by the CPU's
// kernel of the operator and a process group in which the same gloo serves the CPU. What NCCL
// refuses, this refuses: tensors on a CPU, on another GPU than the group's, with holes.
#include <c10/util/Exception.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/library.h>
#include "pretend_cuda.h"
using namespace at;
using c10::IValue;
using c10d::ProcessGroup;
using Group = c10::intrusive_ptr<ProcessGroup>;
namespace {

const char* COLLECTIVES[] = {
    "allreduce_", "allreduce_coalesced_", "broadcast_", "reduce_", "allgather_", "allgather_coalesced_",
    "_allgather_base_", "allgather_into_tensor_coalesced_", "gather_", "scatter_", "reduce_scatter_",
    "_reduce_scatter_base_", "reduce_scatter_tensor_coalesced_", "alltoall_", "alltoall_base_", "send",
    "recv_", "recv_any_source_"};

// In these NCCL looks at numbers of elements alone, gloo at shapes too.
bool is_flat(const std::string& name) {
  return name.find("_base_") != std::string::npos || name.find("tensor_coalesced_") != std::string::npos;
}

Tensor view_of(const Tensor& t, std::optional<Device> own, bool flat) {
  if (!t.defined()) return t;
  TORCH_CHECK(t.is_cuda() && t.layout() == kStrided, "Tensors must be CUDA and dense");
  TORCH_CHECK(t.is_contiguous(), "Tensors must be contiguous");
  TORCH_CHECK(!own || *own == t.device(), "NCCL error: the group is bound to ", *own, ", the tensor on ", t.device());
  return flat ? on_cpu(t).view({-1}) : on_cpu(t);
}

IValue lowered(const IValue& v, std::optional<Device> own, bool flat) {
  if (v.isTensor()) return view_of(v.toTensor(), own, flat);
  if (v.isTensorList()) {
    c10::List<Tensor> views;
    for (Tensor t : v.toTensorList()) views.push_back(view_of(t, own, flat));
    return views;
  }
  if (v.isList() && *v.toList().elementType() == *c10::ListType::ofTensors()) {
    c10::List<c10::List<Tensor>> lists;
    for (const IValue& inner : v.toListRef()) lists.push_back(lowered(inner, own, flat).toTensorList());
    return lists;
  }
  return v;
}

Group on_its_cpu(const Group& group) {
  auto twin = c10::make_intrusive<ProcessGroup>(group->getRank(), group->getSize());
  twin->setBoundDeviceId(group->getBoundDeviceId());  // which it hands to the backend
  twin->setBackend(DeviceType::CPU, ProcessGroup::BackendType::GLOO, group->getBackend(DeviceType::CUDA));
  return twin;
}

void collective(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const auto begin = stack->size() - arguments.size();
  const IValue first = (*stack)[begin];
  std::optional<Device> own;
  for (size_t i = 0; i < arguments.size(); i++)
    if (arguments[i].name() == "process_group") {
      auto& v = (*stack)[begin + i];
      auto group = v.toCustomClass<ProcessGroup>();
      own = group->getBoundDeviceId();
      v = IValue(on_its_cpu(group));
    }
  const bool flat = is_flat(op.schema().name()) && op.schema().name() != "c10d::alltoall_base_";
  for (size_t i = begin; i < stack->size(); i++) (*stack)[i] = lowered((*stack)[i], own, flat);
  op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
  const auto returned = op.schema().returns().size();
  if (returned == 2) (*stack)[stack->size() - 2] = first;  // what it has written to
}

}  // namespace

TORCH_LIBRARY_IMPL(c10d, CUDA, m) {
  struct Silent : c10::WarningHandler {  // they replace torch's own, which it warns of
    void process(const c10::Warning&) override {}
  } silent;
  c10::WarningUtils::WarningHandlerGuard guard(&silent);
  for (const char* name : COLLECTIVES)
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&collective>());
}
