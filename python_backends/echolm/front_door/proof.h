// Proofs that a request to another model comes from the front door; echolm/internal_calls.py checks
// them, and says what they are.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <fstream>

#include "in_process.h"

namespace echolm {

/// SHA-256 (FIPS 180-4). Here, since no library for it has the same name in all of Triton's images.
class Sha256 {
 public:
  using Digest = std::array<uint8_t, 32>;

  Sha256& update(std::string_view data) {
    length_ += data.size();
    while (!data.empty()) {
      const size_t taken = std::min(data.size(), block_.size() - filled_);
      memcpy(block_.data() + filled_, data.data(), taken);
      filled_ += taken;
      data.remove_prefix(taken);
      if (filled_ == block_.size()) compress();
    }
    return *this;
  }

  Digest digest() {
    const uint64_t bits = length_ * 8;
    update(std::string_view("\x80", 1));
    while (filled_ != 56) update(std::string_view("\0", 1));
    for (int i = 0; i < 8; ++i) block_[56 + i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
    compress();
    Digest out;
    for (size_t i = 0; i < out.size(); ++i)
      out[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
    return out;
  }

 private:
  static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

  void compress() {
    static constexpr uint32_t kRound[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2};
    uint32_t w[64];
    for (int i = 0; i < 16; ++i)
      w[i] = uint32_t{block_[4 * i]} << 24 | uint32_t{block_[4 * i + 1]} << 16 |
             uint32_t{block_[4 * i + 2]} << 8 | block_[4 * i + 3];
    for (int i = 16; i < 64; ++i) {
      const uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] +
             (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (int i = 0; i < 64; ++i) {
      const uint32_t x =
          h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
      const uint32_t y =
          (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + x, d = c, c = b, b = a, a = x + y;
    }
    const std::array<uint32_t, 8> added = {a, b, c, d, e, f, g, h};
    for (size_t i = 0; i < added.size(); ++i) state_[i] += added[i];
    filled_ = 0;
  }

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> block_;
  size_t filled_ = 0;
  uint64_t length_ = 0;
};

/// HMAC-SHA256 (RFC 2104), with the parts of the key hashed once.
class Hmac {
 public:
  explicit Hmac(std::string key) {
    if (key.size() > 64) {
      const auto hashed = Sha256().update(key).digest();
      key.assign(hashed.begin(), hashed.end());
    }
    key.resize(64);
    inner_.update(padded(key, 0x36));
    outer_.update(padded(key, 0x5c));
  }
  Sha256 begin() const { return inner_; }
  std::string end(Sha256 inner) const {
    const auto hashed = inner.digest();
    const auto code =
        Sha256(outer_).update({reinterpret_cast<const char*>(hashed.data()), hashed.size()}).digest();
    std::string hexadecimal;
    for (const uint8_t byte : code) {
      char digits[3];
      snprintf(digits, sizeof digits, "%02x", byte);
      hexadecimal += digits;
    }
    return hexadecimal;
  }

 private:
  static std::string padded(std::string key, char with) {
    for (char& c : key) c ^= with;
    return key;
  }
  Sha256 inner_, outer_;
};

/// Signs requests with the key that the models have as feedback.signing_key.
class Proofs {
 public:
  Proofs() {
    std::string key;
    if (const char* given = getenv("ECHOLM_FEEDBACK__SIGNING_KEY")) key = given;
    if (const char* file = getenv("ECHOLM_FEEDBACK__SIGNING_KEY_FILE"))
      key.assign(std::istreambuf_iterator<char>(std::ifstream(file).rdbuf()), {});
    const auto is_space = [](char c) { return isspace(static_cast<unsigned char>(c)); };
    while (!key.empty() && is_space(key.back())) key.pop_back();
    key.erase(0, std::find_if_not(key.begin(), key.end(), is_space) - key.begin());
    if (!key.empty()) hmac_.emplace(key);
  }

  /// The proof of a request with these inputs, which are sorted by name; empty without a key.
  std::string of(const std::string& purpose, const Tensors& inputs) const {
    if (!hmac_) return "";
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const auto at = std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
    auto signing = hmac_->begin();
    signing.update("echolm call 1\n" + purpose + '\n' + at + '\n');
    for (const char* name : kSigned)
      if (const auto* input = find(inputs, name))
        signing.update(std::string(name) + ' ' + std::to_string(input->data.size()) + '\n')
            .update(input->data);
    return at + '.' + hmac_->end(signing);
  }

 private:
  static constexpr const char* kSigned[] = {"llm",           "messages", "report",
                                            "system_prompt", "tenant",   "text_input"};
  std::optional<Hmac> hmac_;
};

}  // namespace echolm
