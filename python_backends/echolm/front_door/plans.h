// What `selection` and `router` answer.
#pragma once

#include <array>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "call.h"
#include "in_process.h"
#include "packed.h"
#include "triton_api.h"

namespace echolm {

constexpr int64_t kPadId = -1;           // in example_ids, where rows differ in length

/// The outputs of `selection` or `router`, by row.
class Plans {
 public:
  /// Throws Failure if an output is missing or has not one element a row.
  Plans(const Response& response, size_t rows) : outputs_(response.outputs()), rows_(rows) {
    for (size_t i = 0; i < kTexts.size(); ++i)
      texts_[i] = elements(kTexts[i], find(kTexts[i], TRITONSERVER_TYPE_BYTES).data, rows);
    ids_ = fixed("example_ids", TRITONSERVER_TYPE_INT64, 0);
    quality_ = fixed("predicted_quality", TRITONSERVER_TYPE_FP32, sizeof(float));
    solicit_ = fixed("solicit_feedback", TRITONSERVER_TYPE_BOOL, sizeof(bool));
  }

  std::string_view refusal(size_t row) const { return texts_[0][row]; }
  std::string_view llm_call(size_t row) const { return texts_[4][row]; }
  std::string_view stored_answer(size_t row) const { return texts_[3][row]; }

  void read(size_t row, Row* to) const {
    to->request_id = texts_[1][row];
    to->refused = !refusal(row).empty();
    to->llm_model = texts_[2][row];
    to->llm = texts_[5][row];
    to->feedback_token = texts_[6][row];
    to->degraded = texts_[7][row];
    to->example_ids.resize(ids_.size() / rows_ / sizeof(int64_t));
    const size_t bytes = to->example_ids.size() * sizeof(int64_t);
    if (bytes > 0) memcpy(to->example_ids.data(), ids_.data() + row * bytes, bytes);
    while (!to->example_ids.empty() && to->example_ids.back() == kPadId) to->example_ids.pop_back();
    memcpy(&to->predicted_quality, quality_.data() + row * sizeof(float), sizeof(float));
    to->solicit_feedback = solicit_[row] != 0;
  }

 private:
  static constexpr std::array<const char*, 8> kTexts = {
      "refusal",  "request_id", "llm_model",      "stored_answer",
      "llm_call", "chosen_llm", "feedback_token", "degraded"};

  const Output& find(const char* name, TRITONSERVER_DataType datatype) const {
    for (const auto& output : outputs_)
      if (output.name == name && output.datatype == datatype) return output;
    throw malformed(std::string("plan: expected an output ") + name + ", got none of its type");
  }
  std::string_view fixed(const char* name, TRITONSERVER_DataType datatype, size_t size) const {
    const auto data = find(name, datatype).data;
    if (size == 0 ? data.size() % (rows_ * sizeof(int64_t)) != 0 : data.size() != rows_ * size)
      throw malformed(std::string(name) + ": expected " + std::to_string(rows_) +
                      " rows, got " + std::to_string(data.size()) + " bytes");
    return data;
  }

  std::vector<Output> outputs_;
  size_t rows_;
  std::array<std::vector<std::string_view>, kTexts.size()> texts_;
  std::string_view ids_, quality_, solicit_;
};

/// Code and text of an error that `router` gives to a client.
inline Failure refusal(std::string_view text) {
  const auto begins = [&](std::string_view code) { return text.substr(0, code.size()) == code; };
  auto status = TRITONSERVER_ERROR_INTERNAL;
  if (begins("[invalid_request]") || begins("[context_length]"))
    status = TRITONSERVER_ERROR_INVALID_ARG;
  else if (begins("[unavailable]"))
    status = TRITONSERVER_ERROR_UNAVAILABLE;
  else if (begins("[cancelled]"))
    status = TRITONSERVER_ERROR_CANCELLED;
  return Failure(status, std::string(text));
}

}  // namespace echolm
