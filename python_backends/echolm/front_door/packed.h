// What travels in one BYTES element: numbers and texts, little-endian, one after the other.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "triton_api.h"

namespace echolm {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are copied as they are");

/// Why a request cannot be answered, with the status that its client gets.
struct Failure : std::runtime_error {
  Failure(TRITONSERVER_Error_Code code, const std::string& message)
      : std::runtime_error(message), code(code) {}
  TRITONSERVER_Error_Code code;
};

inline Failure malformed(const std::string& what) {
  return Failure(TRITONSERVER_ERROR_INTERNAL, "[internal] " + what);
}

/// Reads a packed value; throws Failure where it ends too early.
class Unpacker {
 public:
  explicit Unpacker(std::string_view packed) : rest_(packed) {}

  template <typename T>
  T number() {
    T value;
    memcpy(&value, bytes(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view text() { return bytes(number<uint32_t>()); }
  bool done() const { return rest_.empty(); }

 private:
  std::string_view bytes(size_t size) {
    if (size > rest_.size())
      throw malformed("packed value: expected " + std::to_string(size) + " more bytes, got " +
                      std::to_string(rest_.size()));
    auto taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }
  std::string_view rest_;
};

/// Packs a value as the one element of a BYTES tensor, its length in front.
class Packer {
 public:
  Packer() : packed_(sizeof(uint32_t), '\0') {}

  template <typename T>
  Packer& number(T value) {
    packed_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  Packer& text(std::string_view text) {
    number(static_cast<uint32_t>(text.size()));
    packed_.append(text);
    return *this;
  }
  std::string element() && {
    const auto size = static_cast<uint32_t>(packed_.size() - sizeof(uint32_t));
    memcpy(packed_.data(), &size, sizeof(size));
    return std::move(packed_);
  }

 private:
  std::string packed_;
};

/// The elements of a BYTES tensor; throws Failure unless there are `count`.
inline std::vector<std::string_view> elements(const std::string& name, std::string_view data,
                                              size_t count) {
  std::vector<std::string_view> found;
  for (Unpacker rest(data); !rest.done();) found.push_back(rest.text());
  if (found.size() != count)
    throw malformed(name + ": expected " + std::to_string(count) + " elements, got " +
                    std::to_string(found.size()));
  return found;
}

/// The call of an LLM as `router` packs it: settings of the front door, then the LLM's inputs.
struct LLMCall {
  struct Input {
    std::string name, datatype;
    std::vector<int64_t> shape;
    std::string_view data;
  };

  explicit LLMCall(std::string_view bytes) : packed(bytes) {
    Unpacker from(packed);
    max_in_flight = from.number<int32_t>();
    selections_in_flight = from.number<int32_t>();
    selection_timeout_ms = from.number<int32_t>();
    request_timeout_ms = from.number<int32_t>();
    stream_interval_ms = from.number<double>();
    const auto flags = from.number<uint8_t>();
    cumulative = flags & 1;
    adds_counts = flags & 2;
    gathers = flags & 4;
    max_tokens = from.number<int32_t>();
    for (auto n = from.number<uint32_t>(); n > 0; --n) stop_words.emplace_back(from.text());
    for (auto n = from.number<uint32_t>(); n > 0; --n) {
      Input input;
      input.name = from.text();
      input.datatype = from.text();
      for (auto d = from.number<uint32_t>(); d > 0; --d)
        input.shape.push_back(from.number<int64_t>());
      input.data = from.text();
      inputs.push_back(std::move(input));
    }
  }
  LLMCall(const LLMCall&) = delete;

  const std::string packed;  // the inputs' data point into it
  int32_t max_in_flight, selections_in_flight, selection_timeout_ms, request_timeout_ms;
  double stream_interval_ms;
  bool cumulative;   // each response holds all of the text so far
  bool adds_counts;  // num_output_tokens counts one response only
  bool gathers;      // the model takes the parameter stream_interval_ms
  int32_t max_tokens;
  std::vector<std::string> stop_words;
  std::vector<Input> inputs;
};

}  // namespace echolm
