// A client's request, and its responses.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "answer_text.h"
#include "in_process.h"
#include "packed.h"
#include "triton_api.h"

namespace echolm {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;

constexpr std::array<const char*, 10> kOutputs = {
    "text_output",    "llm",      "example_ids",   "predicted_quality", "solicit_feedback",
    "feedback_token", "degraded", "finish_reason", "num_input_tokens",  "num_output_tokens"};

struct Input {
  std::string name;
  TRITONSERVER_DataType datatype;
  std::vector<int64_t> shape;  // the first is the number of rows
  std::string data;
};
using Inputs = std::vector<Input>;

/// What became of one row of a client's request so far.
struct Row {
  std::string request_id, llm, feedback_token, degraded;
  std::vector<int64_t> example_ids;
  float predicted_quality = 0;
  uint8_t solicit_feedback = 0;
  bool refused = false;  // by `router`, which needs no report then

  std::shared_ptr<const LLMCall> llm_call;
  std::string llm_model;
  std::shared_ptr<InProcessRequest> generation;  // responses of any other one are late
  TimePoint llm_started, deadline;
  int attempts = 0;
  AnswerText reader;
  bool begun = false;  // whether any response held text, be it empty
  bool done = false;

  std::string text, finish_reason;
  int32_t num_input_tokens = -1, num_output_tokens = -1;
  double selection_s = 0, generation_s = 0, first_token_s = -1;
};

/// One request of a client. Everything but what is const is guarded by `mutex`.
struct Call {
  std::mutex mutex;
  TRITONBACKEND_ModelInstance* instance = nullptr;
  TRITONBACKEND_Request* request = nullptr;
  TRITONBACKEND_ResponseFactory* factory = nullptr;
  TimePoint started = Clock::now();
  uint32_t wanted_outputs = 0;  // a bit for each of kOutputs
  bool streaming = false;
  std::shared_ptr<const Inputs> inputs;
  std::string merge_key;  // requests with the same one can be one request to `selection`
  std::vector<Row> rows;
  std::atomic<bool> closed{false};  // the final response is out

  bool sent = false;     // whether any piece was taken for the client
  std::string gathered;  // pieces that wait for the end of the interval
  TimePoint interval_over;
  bool flush_scheduled = false;
};
using CallPtr = std::shared_ptr<Call>;

/// A response to a client while it is put together; sent or deleted.
class ClientResponse {
 public:
  explicit ClientResponse(const Call& call) : wanted_(call.wanted_outputs) {
    check(TRITONBACKEND_ResponseNewFromFactory(&response_, call.factory));
  }
  ClientResponse(const ClientResponse&) = delete;
  ~ClientResponse() {
    if (response_ != nullptr) log_failed(TRITONBACKEND_ResponseDelete(response_));
  }

  template <typename T>
  void fixed(size_t output, TRITONSERVER_DataType datatype, const std::vector<T>& values,
             int64_t rows) {
    const size_t size = values.size() * sizeof(T);
    const int64_t columns = static_cast<int64_t>(values.size()) / rows;
    if (char* to = buffer(output, datatype, {rows, columns}, size); to != nullptr && size > 0)
      memcpy(to, values.data(), size);
  }
  void texts(size_t output, const std::vector<std::string_view>& values) {
    size_t size = 0;
    for (auto value : values) size += sizeof(uint32_t) + value.size();
    const auto rows = static_cast<int64_t>(values.size());
    char* to = buffer(output, TRITONSERVER_TYPE_BYTES, {rows, 1}, size);
    if (to == nullptr) return;
    for (auto value : values) {
      const auto length = static_cast<uint32_t>(value.size());
      memcpy(to, &length, sizeof(length));
      memcpy(to + sizeof(length), value.data(), value.size());
      to += sizeof(length) + value.size();
    }
  }
  void send(uint32_t flags, const Failure* failure = nullptr) {
    auto* error =
        failure == nullptr ? nullptr : TRITONSERVER_ErrorNew(failure->code, failure->what());
    log_failed(TRITONBACKEND_ResponseSend(std::exchange(response_, nullptr), flags, error));
    if (error != nullptr) TRITONSERVER_ErrorDelete(error);
  }

 private:
  /// Memory for an output; null if the client does not want it.
  char* buffer(size_t output, TRITONSERVER_DataType datatype, std::array<int64_t, 2> shape,
               size_t size) {
    if ((wanted_ >> output & 1) == 0) return nullptr;
    TRITONBACKEND_Output* tensor;
    void* data = nullptr;
    auto memory = TRITONSERVER_MEMORY_CPU;
    int64_t memory_id = 0;
    check(TRITONBACKEND_ResponseOutput(response_, &tensor, kOutputs[output], datatype,
                                       shape.data(), shape.size()));
    check(TRITONBACKEND_OutputBuffer(tensor, &data, size, &memory, &memory_id));
    if (memory > 1) throw malformed("output: expected memory of the CPU");
    return static_cast<char*>(data);
  }

  TRITONBACKEND_Response* response_ = nullptr;
  uint32_t wanted_;
};

}  // namespace echolm
