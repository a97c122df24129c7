// A CUDA device that is not there: its memory is main memory, and the CPU's kernels do its work.
//
// A tensor of the device is an ordinary one with the dispatch key and the device of CUDA. Each
// operation runs on second faces of its tensors, which share their storage and are on the CPU; what
// comes out is given the first face again. What a GPU would not do is refused: operands on two
// devices, more memory than there is, a buffer read on a stream before it is known to be written.
// What a GPU would do later is done later: a copy to pinned memory arrives when its stream is
// waited for. What makes the host wait is told to `watch`.

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

using at::Tensor;
using c10::Device;
using c10::DeviceType;
using c10::IValue;

bool is_on = false;  // whether torch is told that the device is there

namespace at {

// What torch asks libtorch_cuda.
struct SimulatedHooks final : CUDAHooksInterface {
  explicit SimulatedHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return is_on; }
  bool isBuilt() const override { return is_on; }
  bool isAvailable() const override { return is_on; }
  bool hasPrimaryContext(DeviceIndex) const override { return is_on; }
  DeviceIndex deviceCount() const override { return is_on ? 1 : 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
};

C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", SimulatedHooks)

}  // namespace at

namespace {

const Device kGpu(DeviceType::CUDA, 0), kHost(DeviceType::CPU);

// There is one device and, for the engine of gradients, one stream, whose events are always past.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device exchangeDevice(Device) const override { return kGpu; }
  Device getDevice() const override { return kGpu; }
  c10::Stream getStream(Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, kGpu);
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard);

// Told of what makes the host wait, by its kind and the operation.
enum Answer : int { kGoOn, kRefuse, kIgnore };
using Watch = int (*)(const char* kind, const char* operation);
Watch watch_fn = nullptr;

int64_t live = 0, peak = 0, limit = INT64_MAX;

// ---- memory and streams

using Times = std::map<int64_t, int64_t>;  // a time of each stream

// What a storage of the device, or a pinned one, knows besides its memory.
struct Block {
  c10::DataPtr memory;
  int64_t nbytes;
  bool pinned;
  int64_t home;                   // the stream that it was allocated on
  int64_t writer, written;        // the last write: stream and time
  Times readers;                  // the last read on each stream
  std::set<int64_t> recorded;     // streams that `record_stream` was called with
};

thread_local int64_t current = 0;
constexpr int64_t kProgram = -1;  // the host, which also learns what streams have done
Times clocks;                     // operations begun on each stream
std::map<int64_t, Times> known;   // what each stream knows to be done of the others
std::vector<std::string> hazards; // found where nothing can be refused any more

bool is_done(int64_t stream, int64_t time) {
  return stream == current || std::max(known[current][stream], known[kProgram][stream]) >= time;
}

void learn(int64_t who, int64_t other, int64_t time) {
  auto& mine = known[who];
  mine[other] = std::max(mine[other], time);
  for (const auto& [stream, done] : known[other]) mine[stream] = std::max(mine[stream], done);
}

struct Arrival {
  int64_t stream, time;
  Tensor to, from;
};
std::vector<Arrival> pending;

// What the host knows to be done is there; so is, for a stream, what it did itself before.
void arrive(int64_t stream = kProgram) {
  const c10::InferenceMode mode;  // tensors of any kind may be written to
  std::vector<Arrival> later;
  for (auto& each : pending) {
    if (each.stream == stream || known[kProgram][each.stream] >= each.time)
      each.to.copy_(each.from);
    else
      later.push_back(each);
  }
  pending = std::move(later);
}

// The host has waited for what a stream had begun by a time.
void settle(int64_t stream, int64_t time) {
  learn(kProgram, stream, time);
  arrive();
}

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  if (!block->pinned) {
    live -= block->nbytes;
    for (const auto& [stream, time] : block->readers)
      if (stream != block->home && !block->recorded.count(stream) &&
          std::max(known[block->home][stream], known[kProgram][stream]) < time)
        hazards.push_back("stream " + std::to_string(stream) + " reads memory that stream " +
                          std::to_string(block->home) + " may use again");
  }
  delete block;
}

c10::DataPtr& pointer_of(const c10::Storage& storage) {
  return storage.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks();
}

Block* block_of(const Tensor& x) {
  auto& pointer = pointer_of(x.storage());
  return pointer.get_deleter() == &release ? static_cast<Block*>(pointer.get_context()) : nullptr;
}

void own(const Tensor& x, bool pinned) {
  auto& pointer = pointer_of(x.storage());
  if (pointer.get_deleter() == &release) return;
  const auto nbytes = static_cast<int64_t>(x.storage().nbytes());
  if (!pinned) {
    TORCH_CHECK_WITH(OutOfMemoryError, live + nbytes <= limit,
                     "CUDA out of memory. Tried to allocate ", nbytes, " bytes of ", limit,
                     ", of which ", live, " are taken");
    live += nbytes;
    peak = std::max(peak, live);
  }
  void* place = pointer.get();
  auto* block = new Block{std::move(pointer), nbytes, pinned, current, current, clocks[current]};
  pointer = c10::DataPtr(place, block, &release, pinned ? kHost : kGpu);
}

void read(const Tensor& x, const std::string& operation) {
  auto* block = block_of(x);
  if (!block || block->pinned) return;
  TORCH_CHECK(is_done(block->writer, block->written), "race: ", operation, " on stream ", current,
              " reads what stream ", block->writer, " writes, and does not wait for it");
  block->readers[current] = clocks[current];
}

void require_read(const Tensor& x, const std::string& operation) {
  auto* block = block_of(x);
  if (!block || block->pinned) return;
  for (const auto& [stream, time] : block->readers)
    TORCH_CHECK(is_done(stream, time), "race: ", operation, " on stream ", current,
                " writes what stream ", stream, " reads, and does not wait for it");
}

void write(const Tensor& x) {
  auto* block = block_of(x);
  if (!block || block->pinned) return;
  block->writer = current;
  block->written = clocks[current];
}

// ---- faces

// The same numbers on the other device.
Tensor face(const Tensor& x, Device device) {
  const c10::InferenceMode mode(x.is_inference());
  c10::Storage storage = x.storage();
  pointer_of(storage).unsafe_set_device(device);
  const auto lazy = x.key_set() & c10::DispatchKeySet({c10::DispatchKey::Conjugate,
                                                       c10::DispatchKey::Negative});
  const auto backend = device.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
  auto out = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(backend) | lazy, x.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(x.sizes(), x.strides(), x.storage_offset());
  return out;
}

// The host waits for the stream that it works on.
void wait(const char* kind, const std::string& operation) {
  const int answer = watch_fn ? watch_fn(kind, operation.c_str()) : kGoOn;
  TORCH_CHECK(answer != kRefuse, "CUDA error: operation not permitted when stream is capturing (",
              operation, ")");
  if (answer != kIgnore) settle(current, clocks[current]);
}

// Operations whose result has a size that only the numbers tell, or is a number of the host's.
const std::set<std::string> kWaits = {
    "aten::_local_scalar_dense", "aten::nonzero",   "aten::masked_select",
    "aten::_unique2",            "aten::unique_dim", "aten::unique_consecutive",
    "aten::equal",               "aten::bincount",   "aten::repeat_interleave"};
const std::set<std::string> kIndexing = {"aten::index", "aten::index_put_",
                                         "aten::_index_put_impl_", "aten::index_put"};

// The tensors of an operation, and the faces that stand for them.
struct Call {
  std::string name;
  std::vector<std::pair<Tensor, Tensor>> faces;  // (of the device, on the host)
  std::vector<Tensor> host, masks;
  bool looks = false;  // it gives another view of a tensor, whose numbers it does not read

  explicit Call(std::string operation) : name(std::move(operation)) {}

  Tensor take(const Tensor& x) {
    if (!x.defined()) return x;
    if (!x.is_cuda()) {
      host.push_back(x);
      return x;
    }
    if (!looks) read(x, name);
    faces.emplace_back(x, face(x, kHost));
    return faces.back().second;
  }

  IValue take(const IValue& value) {
    if (value.isTensor()) return take(value.toTensor());
    if (value.isStorage()) pointer_of(value.toStorage()).unsafe_set_device(kHost);
    if (value.isDevice()) return value.toDevice().is_cuda() ? IValue(kHost) : value;
    if (value.isTensorList()) {
      c10::List<Tensor> taken;
      for (const Tensor& x : value.toTensorList()) taken.push_back(take(x));
      return taken;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> taken;
      for (const std::optional<Tensor>& x : value.toOptionalTensorList()) {
        taken.push_back(x ? std::optional<Tensor>(take(*x)) : x);
        if (x && (x->scalar_type() == at::kBool || x->scalar_type() == at::kByte))
          masks.push_back(*x);
      }
      return taken;
    }
    return value;
  }

  void require_one_device() const {
    if (faces.empty()) return;
    for (const auto& x : host) {
      if (x.dim() == 0) continue;
      if (kIndexing.count(name) && x.scalar_type() == at::kLong) {
        wait("send", name);
        continue;
      }
      TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two "
                  "devices, cuda:0 and cpu! (", name, ")");
    }
  }

  // Give storages their device back, and the device's tensors the sizes that their faces have now.
  void give_back() const {
    for (const auto& [x, stand_in] : faces) {
      pointer_of(x.storage()).unsafe_set_device(kGpu);
      if (!x.is_alias_of(stand_in)) {  // `set_`
        pointer_of(stand_in.storage()).unsafe_set_device(kGpu);
        x.unsafeGetTensorImpl()->set_storage_keep_dtype(stand_in.storage());
      }
      if (x.sizes() != stand_in.sizes() || x.strides() != stand_in.strides())
        x.unsafeGetTensorImpl()->set_sizes_and_strides(stand_in.sizes(), stand_in.strides(),
                                                       stand_in.storage_offset());
      own(x, false);
    }
  }

  Tensor give(const Tensor& out) const {
    if (!out.defined()) return out;
    for (const auto& [x, stand_in] : faces)
      if (out.is_same(stand_in)) return x;
    for (const auto& x : host)
      if (out.is_same(x)) return out;
    own(out, false);
    return face(out, kGpu);
  }

  IValue give(const IValue& value) const {
    if (value.isTensor()) return give(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<Tensor> given;
    for (const Tensor& x : value.toTensorList()) given.push_back(give(x));
    return given;
  }
};

void run(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto count = schema.arguments().size(), begin = stack->size() - count;
  Call call(schema.name());
  for (const auto& out : schema.returns())
    call.looks |= out.alias_info() && !out.alias_info()->isWrite();
  std::vector<Tensor> changed;
  ++clocks[current];
  for (size_t i = 0; i < count; ++i) {
    IValue& value = (*stack)[begin + i];
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias && alias->isWrite() && value.isTensor()) changed.push_back(value.toTensor());
    value = call.take(value);
  }
  call.require_one_device();
  // Of `aten::index`, PyTorch asks for the places of a mask by itself.
  if (kWaits.count(call.name) || (!call.masks.empty() && call.name != "aten::index"))
    wait("read", call.name);
  for (const auto& x : changed) require_read(x, call.name);
  try {
    op.callBoxed(stack);
  } catch (...) {
    call.give_back();
    throw;
  }
  call.give_back();
  for (const auto& x : changed) write(x);
  const auto results = schema.returns().size(), first = stack->size() - results;
  for (size_t i = 0; i < results; ++i) (*stack)[first + i] = call.give((*stack)[first + i]);
}

// From memory that is not pinned, so many bytes are staged at once; of more the driver may wait.
constexpr size_t kStaged = 64 << 10;

// As cudaMemcpyAsync: what goes to pinned memory arrives later, and what is sent from it or is small
// lets the host go on. A graph would read again what was sent from memory that is not pinned.
Tensor& copy(Tensor& self, const Tensor& source, bool non_blocking) {
  ++clocks[current];
  const bool to_host = !self.is_cuda(), from_host = !source.is_cuda();
  const auto* block = to_host ? block_of(self) : from_host ? block_of(source) : nullptr;
  const bool pinned = block && block->pinned;
  Call call("aten::copy_");
  const Tensor to = call.take(self), from = call.take(source);
  require_read(self, call.name);
  const bool later = to_host && pinned && non_blocking;
  if (to_host && !later) wait("read", call.name);
  if (from_host && !(non_blocking && pinned)) {
    const bool staged = non_blocking && source.nbytes() <= kStaged;
    wait(staged ? "stage" : "send", call.name);
  }
  if (later) {
    pending.push_back({current, clocks[current], self, from.to(self.scalar_type(), false, true)});
    if (self.is_contiguous()) std::memset(self.mutable_data_ptr(), 0xff, self.nbytes());
  } else {
    arrive(current);
    to.copy_(from);
  }
  call.give_back();
  write(self);
  return self;
}

void pin(const Tensor& x) { own(x, true); }

}  // namespace

TORCH_LIBRARY(simulated, m) {
  m.def("watch(int function) -> ()", [](int64_t function) {
    watch_fn = reinterpret_cast<Watch>(function);
  });
  m.def("limit(int nbytes) -> ()", [](int64_t nbytes) { limit = nbytes; });
  m.def("live() -> int", [] { return live; });
  m.def("peak() -> int", [] { return peak; });
  m.def("forget_peak() -> ()", [] { peak = live; });
  m.def("stream(int number) -> ()", [](int64_t number) { current = number; });
  m.def("learn(int stream, int other, int time) -> ()", &learn);
  m.def("time(int stream) -> int", [](int64_t stream) { return clocks[stream]; });
  m.def("settle(int stream, int time) -> ()", &settle);
  m.def("record(Tensor x, int stream) -> ()", [](const Tensor& x, int64_t stream) {
    if (auto* block = block_of(x)) block->recorded.insert(stream);
  });
  m.def("hazards() -> str[]", [] {
    std::vector<std::string> found;
    found.swap(hazards);
    return found;
  });
  m.def("switch(bool on) -> ()", [](bool on) { is_on = on; });
  m.def("pin(Tensor x) -> ()", &pin);
  // For Triton's interpreter: the same memory, as the host sees it.
  m.def("on_host(Tensor x) -> Tensor", [](const Tensor& x) {
    const auto out = face(x, kHost);
    pointer_of(x.storage()).unsafe_set_device(kGpu);
    return out;
  });
  m.def("is_pinned(Tensor x) -> bool", [](const Tensor& x) {
    const auto* block = block_of(x);
    return block && block->pinned;
  });
}

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("copy_", &copy);
  // These have kernels for all devices that ask the device for more than there is here.
  for (const char* name : {"convolution", "convolution_backward"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&run>());
}
