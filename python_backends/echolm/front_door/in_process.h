// Tensors, and requests to other models of the same server.
#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "triton_api.h"

namespace echolm {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are copied as they are");

/// Why a request cannot be answered, with the status that its client gets.
struct Failure : std::runtime_error {
  Failure(int code, const std::string& message)
      : std::runtime_error(message), code(static_cast<TRITONSERVER_Error_Code>(code)) {}
  TRITONSERVER_Error_Code code;
};

inline Failure malformed(const std::string& what) {
  return Failure(TRITONSERVER_ERROR_INTERNAL, "[internal] " + what);
}

inline void log(TRITONSERVER_LogLevel level, const std::string& message) {
  if (auto* error = TRITONSERVER_LogMessage(level, "front_door", 0, message.c_str()))
    TRITONSERVER_ErrorDelete(error);
}

/// Throws a failed call's error as Failure.
inline void check(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  Failure failure(TRITONSERVER_ErrorCode(error), TRITONSERVER_ErrorMessage(error));
  TRITONSERVER_ErrorDelete(error);
  throw failure;
}

/// For calls after whose failure there is nothing else to do.
inline void log_failed(TRITONSERVER_Error* error) try {
  check(error);
} catch (const Failure& failure) {
  log(TRITONSERVER_LOG_ERROR, failure.what());
}

/// Reads what is packed, numbers and texts one after the other; throws Failure if it ends early.
class Unpacker {
 public:
  explicit Unpacker(std::string_view packed) : rest_(packed) {}

  bool done() const { return rest_.empty(); }
  template <typename T>
  T number() {
    T value;
    memcpy(&value, bytes(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view text() { return bytes(number<uint32_t>()); }
  /// The next elements of a tensor, as they stand there.
  std::string_view elements(TRITONSERVER_DataType datatype, int64_t count) {
    if (const size_t size = TRITONSERVER_DataTypeByteSize(datatype)) return bytes(count * size);
    const auto all = rest_;
    for (; count > 0; --count) text();
    return all.substr(0, all.size() - rest_.size());
  }

 private:
  std::string_view bytes(size_t size) {
    if (size > rest_.size())
      throw malformed("packed value: expected " + std::to_string(size) + " more bytes, got " +
                      std::to_string(rest_.size()));
    const auto taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }
  std::string_view rest_;
};

/// Packs numbers and texts one after the other.
struct Packer {
  template <typename T>
  Packer& number(T value) {
    packed.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  Packer& text(std::string_view text) {
    number(static_cast<uint32_t>(text.size())).packed.append(text);
    return *this;
  }
  std::string packed;
};

struct Tensor {
  std::string name;
  TRITONSERVER_DataType datatype;
  std::vector<int64_t> shape;
  std::string data;

  static Tensor of_texts(const char* name, const std::vector<std::string>& texts) {
    Packer to;
    for (const auto& text : texts) to.text(text);
    return {name, TRITONSERVER_TYPE_BYTES, {static_cast<int64_t>(texts.size()), 1}, to.packed};
  }
  int64_t elements() const {
    int64_t count = 1;
    for (auto size : shape) count *= size;
    return count;
  }
  /// Its first element.
  std::string_view text() const { return Unpacker(data).text(); }
};
using Tensors = std::vector<Tensor>;

/// The tensor of this name; null if there is none.
template <typename AnyTensors>
auto find(AnyTensors& tensors, std::string_view name) -> decltype(&tensors[0]) {
  for (auto& tensor : tensors)
    if (tensor.name == name) return &tensor;
  return nullptr;
}

/// A response of another model.
struct Reply {
  std::optional<Failure> error;
  Tensors tensors;
  bool final = true;  // no more come
};

/// How responses to our requests get their memory.
inline TRITONSERVER_ResponseAllocator* allocator() {
  static TRITONSERVER_ResponseAllocator* const made = [] {
    const Allocate allocate = [](auto*, const char* tensor, size_t size, auto, int64_t, void*,
                                 void** buffer, void**, auto* memory, int64_t*) -> Status {
      *buffer = size == 0 ? nullptr : malloc(size);
      *memory = TRITONSERVER_MEMORY_CPU;
      if (size == 0 || *buffer != nullptr) return nullptr;
      return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_UNAVAILABLE, tensor);
    };
    const Release release = [](auto*, void* buffer, auto...) -> Status {
      free(buffer);
      return nullptr;
    };
    TRITONSERVER_ResponseAllocator* allocator;
    check(TRITONSERVER_ResponseAllocatorNew(&allocator, allocate, release, nullptr));
    return allocator;
  }();
  return made;
}

/// One request to another model. Lives until Triton has given it back and its last response came.
class InProcessRequest : public std::enable_shared_from_this<InProcessRequest> {
 public:
  using Self = std::shared_ptr<InProcessRequest>;
  /// Gets each response, on a thread of Triton's; must not throw.
  using OnReply = std::function<void(const Self&, Reply)>;

  Tensors inputs;  // stay as they are once it was sent

  explicit InProcessRequest(Tensors inputs) : inputs(std::move(inputs)) {}
  virtual ~InProcessRequest() {
    if (request_ != nullptr) log_failed(TRITONSERVER_InferenceRequestDelete(request_));
  }

  /// Sends it, once. Throws Failure if Triton does not take it; then no response comes.
  void send(TRITONSERVER_Server* server, const std::string& model, const std::string& id,
            double stream_interval_ms, const std::string& proof, OnReply on_reply) {
    on_reply_ = std::move(on_reply);
    check(TRITONSERVER_InferenceRequestNew(&request_, server, model.c_str(), -1));
    check(TRITONSERVER_InferenceRequestSetId(request_, id.c_str()));
    if (stream_interval_ms > 0)
      check(TRITONSERVER_InferenceRequestSetDoubleParameter(request_, "stream_interval_ms",
                                                            stream_interval_ms));
    if (!proof.empty())
      check(TRITONSERVER_InferenceRequestSetStringParameter(request_, "echolm_proof",
                                                            proof.c_str()));
    for (const auto& [name, datatype, shape, data] : inputs) {
      check(TRITONSERVER_InferenceRequestAddInput(request_, name.c_str(), datatype, shape.data(),
                                                  shape.size()));
      check(TRITONSERVER_InferenceRequestAppendInputData(request_, name.c_str(), data.data(),
                                                         data.size(), TRITONSERVER_MEMORY_CPU, 0));
    }
    auto for_release = std::make_unique<Self>(shared_from_this());
    auto for_replies = std::make_unique<Self>(shared_from_this());
    check(TRITONSERVER_InferenceRequestSetReleaseCallback(request_, on_release, for_release.get()));
    check(TRITONSERVER_InferenceRequestSetResponseCallback(request_, allocator(), nullptr,
                                                           on_complete, for_replies.get()));
    check(TRITONSERVER_ServerInferAsync(server, request_, nullptr));
    for_release.release();
    for_replies.release();
    sent_ = true;
  }

  /// Asks the model to stop, if it was sent; its responses still come.
  void cancel() {
    if (sent_) log_failed(TRITONSERVER_InferenceRequestCancel(request_));
  }

 private:
  static void on_release(TRITONSERVER_InferenceRequest*, uint32_t, void* user) {
    delete static_cast<Self*>(user);
  }
  static void on_complete(TRITONSERVER_InferenceResponse* response, uint32_t flags, void* user) {
    std::unique_ptr<Self> self(static_cast<Self*>(user));
    Reply reply;
    reply.final = flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL;
    const bool more = !reply.final;
    if (response != nullptr) {
      try {
        reply.tensors = outputs(response);
      } catch (const Failure& failure) {
        reply.error = failure;
      }
      log_failed(TRITONSERVER_InferenceResponseDelete(response));
    }
    (*self)->on_reply_(*self, std::move(reply));
    if (more) self.release();
  }

  /// Throws the response's error.
  static Tensors outputs(TRITONSERVER_InferenceResponse* response) {
    // Each call makes a new error, though Triton's documentation says it is the response's.
    check(TRITONSERVER_InferenceResponseError(response));
    uint32_t count;
    check(TRITONSERVER_InferenceResponseOutputCount(response, &count));
    Tensors found;
    for (uint32_t i = 0; i < count; ++i) {
      const char* name;
      TRITONSERVER_DataType datatype;
      const int64_t* shape;
      uint64_t dims;
      const void* data;
      size_t size;
      TRITONSERVER_MemoryType memory;
      int64_t memory_id;
      void* user;
      check(TRITONSERVER_InferenceResponseOutput(response, i, &name, &datatype, &shape, &dims,
                                                 &data, &size, &memory, &memory_id, &user));
      found.push_back({name,
                       datatype,
                       {shape, shape + dims},
                       {static_cast<const char*>(data), data == nullptr ? 0 : size}});
    }
    return found;
  }

  OnReply on_reply_;
  TRITONSERVER_InferenceRequest* request_ = nullptr;
  bool sent_ = false;
};

}  // namespace echolm
