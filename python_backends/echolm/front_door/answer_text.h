// The text of an answer from the responses of an LLM.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace echolm {

/// Cuts a text that comes in pieces at the first stop word, and undoes repetition.
///
/// Works on the bytes of UTF-8 text; pieces hold whole characters.
class AnswerText {
 public:
  AnswerText() = default;
  AnswerText(const std::vector<std::string>& stop_words, bool cumulative)
      : cumulative_(cumulative) {
    for (const auto& word : stop_words)
      if (!word.empty()) stop_words_.push_back(word);
  }

  /// Whether a stop word was found, after which no more text is wanted.
  bool stopped() const { return stopped_; }

  /// Appends to `answer` what a response's text adds to it.
  void take(std::string_view text, std::string* answer) {
    if (cumulative_) {
      // An incomplete character becomes a whole one with the next token.
      const size_t whole = without_replacements(text);
      const size_t taken = std::exchange(taken_, whole);
      rest_ = text.substr(whole);
      text = text.substr(std::min(taken, whole), whole - std::min(taken, whole));
    }
    push(text, answer);
  }

  /// Appends what was held back, when no more text comes.
  void end(std::string* answer) {
    push(rest_, answer);
    answer->append(held_);
    rest_.clear();
    held_.clear();
  }

 private:
  void push(std::string_view text, std::string* answer) {
    if (stopped_) return;
    if (stop_words_.empty()) {
      answer->append(text);
      return;
    }
    held_.append(text);
    size_t certain = std::string::npos;
    for (const auto& word : stop_words_) certain = std::min(certain, held_.find(word));
    stopped_ = certain != std::string::npos;
    if (!stopped_) certain = held_.size() - possible_start();
    answer->append(held_, 0, certain);
    held_.erase(0, stopped_ ? std::string::npos : certain);
  }

  /// Length of the longest end of the held text that is the start of a stop word.
  size_t possible_start() const {
    size_t longest = 0;
    for (const auto& word : stop_words_)
      for (size_t n = std::min(word.size() - 1, held_.size()); n > longest; --n)
        if (held_.compare(held_.size() - n, n, word, 0, n) == 0) longest = n;
    return longest;
  }

  static size_t without_replacements(std::string_view text) {
    constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
    size_t size = text.size();
    while (size >= 3 && text.substr(size - 3, 3) == kReplacement) size -= 3;
    return size;
  }

  std::vector<std::string> stop_words_;
  bool cumulative_ = false, stopped_ = false;
  size_t taken_ = 0;  // bytes of the last cumulative text that were taken
  std::string rest_;  // its incomplete end
  std::string held_;  // can be the start of a stop word
};

}  // namespace echolm
