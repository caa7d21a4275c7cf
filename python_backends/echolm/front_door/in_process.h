// Requests to other models of the same server, without a copy of what they carry.
#pragma once

#include <atomic>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "packed.h"
#include "triton_api.h"

namespace echolm {

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
inline void log_failed(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  log(TRITONSERVER_LOG_ERROR, TRITONSERVER_ErrorMessage(error));
  TRITONSERVER_ErrorDelete(error);
}

struct Output {
  std::string_view name;
  TRITONSERVER_DataType datatype;
  std::vector<int64_t> shape;
  std::string_view data;
};

/// A response of another model; what is read of it points into it.
class Response {
 public:
  explicit Response(TRITONSERVER_InferenceResponse* response) : response_(response) {}
  Response(const Response&) = delete;
  ~Response() {
    if (response_ != nullptr) log_failed(TRITONSERVER_InferenceResponseDelete(response_));
  }

  std::optional<Failure> error() const {
    if (response_ == nullptr) return std::nullopt;
    try {
      // Each call makes a new error, though Triton's documentation says it is the response's.
      check(TRITONSERVER_InferenceResponseError(response_));
      return std::nullopt;
    } catch (const Failure& failure) {
      return failure;
    }
  }

  /// The outputs; none if it only says that no more responses come.
  std::vector<Output> outputs() const {
    std::vector<Output> found;
    uint32_t count = 0;
    if (response_ != nullptr)
      check(TRITONSERVER_InferenceResponseOutputCount(response_, &count));
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
      check(TRITONSERVER_InferenceResponseOutput(response_, i, &name, &datatype, &shape, &dims,
                                                 &data, &size, &memory, &memory_id, &user));
      found.push_back({name, datatype, {shape, shape + dims},
                       {static_cast<const char*>(data), data == nullptr ? 0 : size}});
    }
    return found;
  }

 private:
  TRITONSERVER_InferenceResponse* response_;
};

/// The server, and how its responses to us get their memory.
class Server {
 public:
  explicit Server(TRITONSERVER_Server* server) : server(server) {
    check(TRITONSERVER_ResponseAllocatorNew(&allocator, allocate, release, nullptr));
  }
  Server(const Server&) = delete;
  ~Server() { log_failed(TRITONSERVER_ResponseAllocatorDelete(allocator)); }

  TRITONSERVER_Server* const server;
  TRITONSERVER_ResponseAllocator* allocator = nullptr;
  std::atomic<int> requests_out{0};

 private:
  static TRITONSERVER_Error* allocate(TRITONSERVER_ResponseAllocator*, const char* tensor,
                                      size_t size, TRITONSERVER_MemoryType, int64_t, void*,
                                      void** buffer, void** buffer_user,
                                      TRITONSERVER_MemoryType* memory, int64_t* memory_id) {
    *buffer = size == 0 ? nullptr : malloc(size);
    *buffer_user = nullptr;
    *memory = TRITONSERVER_MEMORY_CPU;
    *memory_id = 0;
    if (size == 0 || *buffer != nullptr) return nullptr;
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_UNAVAILABLE, tensor);
  }
  static TRITONSERVER_Error* release(TRITONSERVER_ResponseAllocator*, void* buffer, void*, size_t,
                                     TRITONSERVER_MemoryType, int64_t) {
    free(buffer);
    return nullptr;
  }
};

/// One request to another model. Lives until Triton has given it back and its last response came.
class InProcessRequest {
 public:
  /// Gets each response, and whether it is the last one; must not throw.
  using OnResponse = std::function<void(const Response&, bool final)>;

  InProcessRequest(std::shared_ptr<Server> server, const std::string& model, OnResponse on_response)
      : server_(std::move(server)), on_response_(std::move(on_response)) {
    check(TRITONSERVER_InferenceRequestNew(&request_, server_->server, model.c_str(), -1));
    ++server_->requests_out;
  }
  InProcessRequest(const InProcessRequest&) = delete;
  ~InProcessRequest() {
    if (request_ == nullptr) return;
    log_failed(TRITONSERVER_InferenceRequestDelete(request_));
    --server_->requests_out;
  }

  void set_id(const std::string& id) {
    check(TRITONSERVER_InferenceRequestSetId(request_, id.c_str()));
  }
  void set_parameter(const char* name, double value) {
    check(TRITONSERVER_InferenceRequestSetDoubleParameter(request_, name, value));
  }
  void add_input(const std::string& name, TRITONSERVER_DataType datatype,
                 const std::vector<int64_t>& shape) {
    check(TRITONSERVER_InferenceRequestAddInput(request_, name.c_str(), datatype, shape.data(),
                                                shape.size()));
  }
  /// Adds to the input's data; `data` must live until on_response is gone.
  void append(const std::string& name, std::string_view data) {
    check(TRITONSERVER_InferenceRequestAppendInputData(request_, name.c_str(), data.data(),
                                                       data.size(), TRITONSERVER_MEMORY_CPU, 0));
  }

  /// Sends it. Throws Failure if Triton does not take it; then no response comes.
  /// Must not be called under a lock: Triton may run other models' code in it.
  static void send(const std::shared_ptr<InProcessRequest>& self) {
    using Self = std::shared_ptr<InProcessRequest>;
    auto for_release = std::make_unique<Self>(self), for_responses = std::make_unique<Self>(self);
    auto* request = self->request_;
    check(TRITONSERVER_InferenceRequestSetReleaseCallback(request, on_release, for_release.get()));
    check(TRITONSERVER_InferenceRequestSetResponseCallback(request, self->server_->allocator,
                                                           nullptr, on_complete,
                                                           for_responses.get()));
    check(TRITONSERVER_ServerInferAsync(self->server_->server, request, nullptr));
    for_release.release();
    for_responses.release();
    if (self->state_.exchange(kSent) == kCancelled) self->cancel();
  }

  /// Asks the model to stop; its responses still come.
  void cancel() {
    // Triton forgets a cancellation from before it has taken the request.
    if (state_.exchange(kCancelled) == kSent)
      log_failed(TRITONSERVER_InferenceRequestCancel(request_));
  }

 private:
  enum State { kNew, kSent, kCancelled };

  static void on_release(TRITONSERVER_InferenceRequest*, uint32_t, void* user) {
    delete static_cast<std::shared_ptr<InProcessRequest>*>(user);
  }
  static void on_complete(TRITONSERVER_InferenceResponse* response, uint32_t flags, void* user) {
    auto* self = static_cast<std::shared_ptr<InProcessRequest>*>(user);
    const bool final = flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL;
    (*self)->on_response_(Response(response), final);
    if (final) delete self;
  }

  std::shared_ptr<Server> server_;
  OnResponse on_response_;
  TRITONSERVER_InferenceRequest* request_ = nullptr;
  std::atomic<State> state_{kNew};
};

}  // namespace echolm
