// The models `echolm` and `echolm_stream`: from a client's request to its answer.
//
// A request is selected for (model `selection`, or `router` alone), then an LLM is called, another
// one if it fails, and afterwards `router` is told how it ended. All models run in the same server
// and are called in process. Nothing here waits: each step ends in a callback on one of Triton's
// threads, and one thread of our own sees to deadlines, gathered pieces and clients that went away.
//
// Locks: a Call's comes before the Door's; none is held while a request is sent to another model.

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "answer_text.h"
#include "call.h"
#include "in_process.h"
#include "packed.h"
#include "plans.h"
#include "triton_api.h"

namespace echolm {
namespace {

using std::chrono::milliseconds;

constexpr size_t kMaxRows = 64;          // of a request to `selection` or `router`
constexpr size_t kMaxReports = 10'000;   // that wait for `router`
constexpr milliseconds kPollEvery{50};   // whether clients have gone, deadlines have passed
constexpr milliseconds kSlowFailure{500};  // Triton sees a dead model process after a second
constexpr milliseconds kUnloadWait{5'000};

enum class Kind : uint8_t { kAnswered = 0, kFailed = 1, kEnded = 2 };  // of a report

double seconds(TimePoint from, TimePoint to) {
  return std::chrono::duration<double>(to - from).count();
}
uint64_t nanoseconds(TimePoint time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

/// Rows of a call about which `selection` or `router` is asked.
struct Target {
  CallPtr call;
  size_t first, count;
};

/// How plans are asked for: all but the first are for `router`.
enum class Stage { kSelection, kRouterAlone, kSelectionFailed, kLLMFailed };

/// Requests at one stage, of which few run at a time, so that those that wait go together.
struct Lane {
  const Stage stage;
  int running = 0;
  std::deque<CallPtr> waiting;
};

/// One request to `selection` or `router` for plans.
struct Planning {
  Planning(Stage stage, Lane* lane, std::vector<Target> targets = {})
      : stage(stage), lane(lane), targets(std::move(targets)) {}
  const Stage stage;
  Lane* const lane;  // in which it has a place; null: in none
  std::vector<Target> targets;
  TimePoint asked, deadline;
  std::atomic<bool> over{false};  // answered, failed or timed out

  size_t rows() const {
    size_t sum = 0;
    for (const auto& target : targets) sum += target.count;
    return sum;
  }
};
using PlanningPtr = std::shared_ptr<Planning>;

/// One loaded model. Outlives what it has asked other models for.
class Door : public std::enable_shared_from_this<Door> {
 public:
  Door(TRITONSERVER_Server* server, std::string name, bool decoupled)
      : server_(std::make_shared<Server>(server)), name_(std::move(name)), decoupled_(decoupled) {}

  void start() {
    timer_ = std::thread([this] { run_timer(); });
  }

  /// Ends the thread and waits, for a while, for other models' answers.
  void stop() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    timer_.join();
    const auto until = Clock::now() + kUnloadWait;
    while (server_->requests_out > 0 && Clock::now() < until)
      std::this_thread::sleep_for(milliseconds(5));
  }

  void accept(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request) {
    auto call = std::make_shared<Call>();
    call->instance = instance;
    call->request = request;
    check(TRITONBACKEND_ResponseFactoryNew(&call->factory, request));
    try {
      read(call.get());
      const size_t limit = max_in_flight_;
      Lane& lane = goes_to_router(*call) ? router_ : selection_;
      bool overloaded;
      {
        std::lock_guard lock(mutex_);
        overloaded = open_.size() >= limit;
        if (!overloaded) {
          open_.insert(call);
          lane.waiting.push_back(call);
        }
      }
      if (overloaded) {
        close(call, Failure(TRITONSERVER_ERROR_UNAVAILABLE,
                            "[unavailable] " + name_ + ": " + std::to_string(limit) +
                                " requests are in flight already; try again later, or raise "
                                "limits.max_in_flight"));
        report({packed(Kind::kEnded, Row(), *call, "overload")});
      } else {
        run(&lane);
      }
    } catch (const std::exception& problem) {
      close(call, problem);
    }
  }

 private:
  // ---- The client's request

  void read(Call* call) const {
    uint32_t count;
    check(TRITONBACKEND_RequestOutputCount(call->request, &count));
    for (uint32_t i = 0; i < count; ++i) {
      const char* name;
      check(TRITONBACKEND_RequestOutputName(call->request, i, &name));
      for (size_t k = 0; k < kOutputs.size(); ++k)
        if (std::string_view(name) == kOutputs[k]) call->wanted_outputs |= 1u << k;
    }
    Inputs inputs;
    int64_t rows = 1;
    bool asks = false;
    check(TRITONBACKEND_RequestInputCount(call->request, &count));
    for (uint32_t i = 0; i < count; ++i) {
      TRITONBACKEND_Input* input;
      const char* name;
      TRITONSERVER_DataType datatype;
      const int64_t* shape;
      uint32_t dims, buffers;
      uint64_t size;
      check(TRITONBACKEND_RequestInputByIndex(call->request, i, &input));
      check(TRITONBACKEND_InputProperties(input, &name, &datatype, &shape, &dims, &size, &buffers));
      Input taken{name, datatype, {shape, shape + dims}, {}};
      taken.data.reserve(size);
      for (uint32_t b = 0; b < buffers; ++b) {
        const void* data;
        auto memory = TRITONSERVER_MEMORY_CPU;
        int64_t memory_id = 0;
        check(TRITONBACKEND_InputBuffer(input, b, &data, &size, &memory, &memory_id));
        if (memory > 1) throw malformed("input: expected memory of the CPU");
        taken.data.append(static_cast<const char*>(data), size);
      }
      if (taken.name == "text_input" || taken.name == "messages") {
        asks = true;
        if (dims > 0) rows = shape[0];
      }
      if (taken.name == "stream") {
        call->streaming = decoupled_ && !taken.data.empty() && taken.data[0] != 0;
        if (!decoupled_) continue;
      }
      inputs.push_back(std::move(taken));
    }
    if (!asks)  // the ensemble's first step would wait for them
      throw Failure(TRITONSERVER_ERROR_INVALID_ARG,
                    "[invalid_request] text_input, messages: expected one of these inputs, got "
                    "none of them");
    if (rows < 1) throw malformed("batch: expected at least one row");
    call->rows.resize(static_cast<size_t>(rows));
    if (decoupled_ && rows != 1)
      throw Failure(TRITONSERVER_ERROR_INVALID_ARG,
                    "[invalid_request] batch: expected one request for " + name_ + ", got " +
                        std::to_string(rows));
    // Triton keeps them in no order.
    std::sort(inputs.begin(), inputs.end(), [](auto& a, auto& b) { return a.name < b.name; });
    for (const auto& input : inputs) {
      call->merge_key += input.name + ':' + std::to_string(input.datatype);
      for (size_t d = 1; d < input.shape.size(); ++d)
        call->merge_key += ',' + std::to_string(input.shape[d]);
      call->merge_key += ';';
    }
    call->inputs = std::make_shared<const Inputs>(std::move(inputs));
  }

  /// Whether nothing that is found would be used.
  static bool goes_to_router(const Call& call) {
    int named = 0;
    for (const auto& input : *call.inputs) {
      const bool llm = input.name == "llm";
      if (!llm && input.name != "cache_control") continue;
      for (auto value : elements(input.name, input.data, call.rows.size()))
        if (llm ? value.empty() || value == "auto" : value != "no-cache") return false;
      ++named;
    }
    return named == 2;
  }

  // ---- Plans

  /// Sends what waits in the lane, as far as there are places.
  void run(Lane* lane) {
    for (;;) {
      std::vector<Target> targets;
      bool bypassed, probed = false;
      {
        std::lock_guard lock(mutex_);
        bypassed = lane->stage == Stage::kSelection && stalled_;
        if (!bypassed && lane->running >= selections_in_flight_) return;
        targets = gather(lane);
        if (targets.empty()) return;
        if (!bypassed)
          ++lane->running;
        else
          probed = !std::exchange(probing_, true);
      }
      if (probed) {
        // Nobody waits for it: when it is answered, the next ones are selected for again.
        auto probe = std::make_shared<Planning>(Stage::kSelection, nullptr, targets);
        probe->over = true;
        ask(probe);
      }
      const auto stage = bypassed ? Stage::kSelectionFailed : lane->stage;
      ask(std::make_shared<Planning>(stage, bypassed ? nullptr : lane, std::move(targets)));
    }
  }

  /// Takes those from the lane that can go together; under `mutex_`.
  std::vector<Target> gather(Lane* lane) {
    std::vector<Target> targets;
    size_t rows = 0;
    std::deque<CallPtr> others;
    for (auto& call : lane->waiting) {
      if (call->closed) continue;
      const auto count = call->rows.size();
      const bool fits = targets.empty() || (rows + count <= kMaxRows &&
                                            call->merge_key == targets[0].call->merge_key);
      if (!fits) {
        others.push_back(std::move(call));
        continue;
      }
      rows += count;
      targets.push_back({std::move(call), 0, count});
    }
    lane->waiting = std::move(others);
    return targets;
  }

  /// Asks for plans. At the stage kLLMFailed, the input is the report of it.
  void ask(const PlanningPtr& planning, std::string report = "") {
    struct Data {  // what the request points to
      std::vector<std::shared_ptr<const Inputs>> inputs;
      std::string extra;
    };
    auto data = std::make_shared<Data>();
    data->extra = std::move(report);
    const char* model = planning->stage == Stage::kSelection ? "selection" : "router";
    planning->asked = Clock::now();
    planning->deadline = planning->asked + milliseconds(selection_timeout_ms_);
    try {
      auto request = std::make_shared<InProcessRequest>(
          server_, model,
          [self = shared_from_this(), planning, data](const Response& response, bool final) {
            self->on_planned(planning, response, final);
          });
      const auto rows = static_cast<int64_t>(planning->rows());
      if (planning->stage == Stage::kLLMFailed) {
        request->add_input("report", TRITONSERVER_TYPE_BYTES, {1, 1});
        request->append("report", data->extra);
      } else {
        for (const auto& target : planning->targets) data->inputs.push_back(target.call->inputs);
        for (size_t i = 0; i < data->inputs[0]->size(); ++i) {
          const Input& first = data->inputs[0]->at(i);
          auto shape = first.shape;
          if (!shape.empty()) shape[0] = rows;
          request->add_input(first.name, first.datatype, shape);
          for (const auto& inputs : data->inputs) request->append(first.name, inputs->at(i).data);
        }
        if (planning->stage == Stage::kSelectionFailed) {
          Packer to;
          for (int64_t i = 0; i < rows; ++i) to.text("retrieval unavailable");
          data->extra = std::move(to).element().substr(sizeof(uint32_t));
          request->add_input("retrieval_degraded", TRITONSERVER_TYPE_BYTES, {rows, 1});
          request->append("retrieval_degraded", data->extra);
        }
      }
      {
        std::lock_guard lock(mutex_);
        if (!planning->over) planning_.insert(planning);
      }
      InProcessRequest::send(request);
    } catch (const std::exception& problem) {
      if (planning->stage == Stage::kSelection) selected(*planning, true);
      if (end(planning)) no_plan(planning, problem.what());
    }
  }

  /// Ends the planning once: false if it has ended before.
  bool end(const PlanningPtr& planning) {
    if (planning->over.exchange(true)) return false;
    {
      std::lock_guard lock(mutex_);
      planning_.erase(planning);
      if (planning->lane != nullptr) --planning->lane->running;
    }
    return true;
  }

  /// `selection` has answered: soon, or with an error for which nobody shall wait again.
  void selected(const Planning& planning, bool failed) {
    if (failed && Clock::now() - planning.asked > kSlowFailure) stall();
    std::lock_guard lock(mutex_);
    probing_ = false;
    if (!failed && std::exchange(stalled_, false))
      log(TRITONSERVER_LOG_WARN, name_ + ": selection answers again");
  }

  /// Until `selection` answers again, requests go without examples, so that none waits in vain.
  void stall() {
    std::lock_guard lock(mutex_);
    if (!std::exchange(stalled_, true))
      log(TRITONSERVER_LOG_WARN, name_ + ": selection fails slowly; without examples meanwhile");
  }

  void on_planned(const PlanningPtr& planning, const Response& response, bool final) try {
    const auto error = response.error();
    if (!final && !error && response.outputs().empty()) return;
    if (planning->stage == Stage::kSelection) selected(*planning, error.has_value());
    const bool late = !end(planning);
    if (!late && planning->lane != nullptr) run(planning->lane);
    if (error) return late ? void() : no_plan(planning, error->what());
    try {
      const Plans plans(response, planning->rows());
      size_t at = 0;
      for (const auto& target : planning->targets) {
        if (late)
          end_rows(target, plans, at, planning->stage, "late");
        else
          plan(target, plans, at, planning->stage);
        at += target.count;
      }
    } catch (const std::exception& problem) {
      if (late) throw;
      for (const auto& target : planning->targets) close(target.call, problem);
    }
  } catch (const std::exception& problem) {
    log(TRITONSERVER_LOG_ERROR, problem.what());
  }

  /// Reports rows whose plans nobody waits for any more; after a failed LLM they have been.
  void end_rows(const Target& target, const Plans& plans, size_t at, Stage stage,
                std::string_view reason) {
    if (stage == Stage::kLLMFailed) return;
    std::vector<std::string> reports;
    for (size_t i = 0; i < target.count; ++i) {
      Row row;
      plans.read(at + i, &row);
      if (!row.refused) reports.push_back(packed(Kind::kEnded, row, *target.call, reason));
    }
    report(std::move(reports));
  }

  /// The rows get no plan, or `router` is asked alone where `selection` failed.
  void no_plan(const PlanningPtr& planning, const std::string& message) {
    const bool selection = planning->stage == Stage::kSelection;
    if (selection) complain("selection failed: ", message);
    auto alone = std::make_shared<Planning>(Stage::kSelectionFailed, nullptr);
    for (const auto& target : planning->targets) {
      if (!selection)
        close(target.call,
              Failure(TRITONSERVER_ERROR_UNAVAILABLE, "[unavailable] router: " + message));
      else if (!target.call->closed)
        alone->targets.push_back(target);
    }
    if (!alone->targets.empty()) ask(alone);
  }

  /// Takes the plans of a call's rows, from row `at` of `plans` on, and calls the LLMs.
  void plan(const Target& target, const Plans& plans, size_t at, Stage stage) try {
    const auto& call = target.call;
    std::unique_lock lock(call->mutex);
    if (call->closed) {
      lock.unlock();
      return end_rows(target, plans, at, stage, "cancelled");
    }
    std::optional<Failure> failure;
    std::vector<size_t> generating;
    for (size_t i = 0; i < target.count; ++i) {
      Row& row = call->rows[target.first + i];
      plans.read(at + i, &row);
      if (stage != Stage::kLLMFailed) row.selection_s = seconds(call->started, Clock::now());
      try {
        if (row.refused) throw refusal(plans.refusal(at + i));
        if (row.llm_model.empty()) {
          row.text = plans.stored_answer(at + i);
          row.finish_reason = "stop";
          row.num_input_tokens = row.num_output_tokens = 0;
          row.done = true;
          continue;
        }
        row.llm_call = std::make_shared<const LLMCall>(plans.llm_call(at + i));
        obey(*row.llm_call);
        generating.push_back(target.first + i);
      } catch (const Failure& problem) {
        if (!failure) failure = problem;
      }
    }
    if (failure) return close(call, &lock, *failure);
    if (call->streaming && generating.empty()) take_piece(call, &call->rows[0], call->rows[0].text);
    if (generating.empty()) return answer_if_done(call, &lock);
    lock.unlock();
    for (size_t i : generating) generate(call, i);
  } catch (const std::exception& problem) {
    close(target.call, problem);
  }

  void obey(const LLMCall& call) {
    max_in_flight_ = static_cast<size_t>(std::max(1, call.max_in_flight));
    selections_in_flight_ = std::max(1, call.selections_in_flight);
    selection_timeout_ms_ = std::max(1, call.selection_timeout_ms);
    request_timeout_ms_ = std::max(1, call.request_timeout_ms);
    stream_interval_ms_ = call.stream_interval_ms;
  }

  // ---- LLMs

  /// Calls the LLM of a row's plan.
  void generate(const CallPtr& call, size_t index) {
    std::shared_ptr<InProcessRequest> request;
    std::unique_lock lock(call->mutex);
    if (call->closed) return;
    Row& row = call->rows[index];
    row.reader = AnswerText(row.llm_call->stop_words, row.llm_call->cumulative);
    row.text.clear();
    row.finish_reason.clear();
    row.num_input_tokens = row.num_output_tokens = -1;
    row.begun = false;
    row.llm_started = Clock::now();
    row.deadline = row.llm_started + milliseconds(request_timeout_ms_);
    row.generation = nullptr;
    try {
      const auto id = row.request_id + "-" + std::to_string(row.attempts++);
      // The request knows itself, since what it brings is late once the row has another one.
      auto self = std::make_shared<std::weak_ptr<InProcessRequest>>();
      request = std::make_shared<InProcessRequest>(
          server_, row.llm_model,
          [door = shared_from_this(), call, index, self, data = row.llm_call](
              const Response& response, bool final) {
            door->on_generated(call, index, self->lock(), response, final);
          });
      *self = request;
      if (!row.request_id.empty()) request->set_id(id);
      for (const auto& input : row.llm_call->inputs) {
        const auto datatype = TRITONSERVER_StringToDataType(input.datatype.c_str());
        request->add_input(input.name, datatype, input.shape);
        request->append(input.name, input.data);
      }
      if (call->streaming && row.llm_call->gathers && row.llm_call->stream_interval_ms > 0)
        request->set_parameter("stream_interval_ms", row.llm_call->stream_interval_ms);
      row.generation = request;
      lock.unlock();
      InProcessRequest::send(request);
    } catch (const Failure& problem) {
      if (!lock.owns_lock()) lock.lock();
      if (row.generation == request) llm_failed(call, index, &lock, problem);
    }
  }

  void on_generated(const CallPtr& call, size_t index,
                    const std::shared_ptr<InProcessRequest>& request, const Response& response,
                    bool final) try {
    std::unique_lock lock(call->mutex);
    Row& row = call->rows[index];
    if (call->closed || row.generation != request) return;
    if (call->streaming && gone(*call)) return close(call, &lock, client_gone(), "cancelled");
    if (const auto error = response.error()) return llm_failed(call, index, &lock, *error);
    const size_t known = row.text.size();
    take(response, &row);
    const bool stopped = row.reader.stopped();
    const bool ended = final || stopped;
    if (ended) {
      row.generation_s = seconds(row.llm_started, Clock::now());
      if (!row.begun)
        return llm_failed(call, index, &lock,
                          Failure(TRITONSERVER_ERROR_UNAVAILABLE,
                                  row.llm_model + ": ended without an answer"));
      row.reader.end(&row.text);
      end_reason(&row, stopped);
      row.generation = nullptr;
      row.done = true;
    }
    if (call->streaming) take_piece(call, &row, std::string_view(row.text).substr(known));
    if (ended) answer_if_done(call, &lock);
    if (lock.owns_lock()) lock.unlock();
    if (stopped && !final) request->cancel();
  } catch (const std::exception& problem) {
    close(call, problem);
  }

  static void take(const Response& response, Row* row) {
    const auto outputs = response.outputs();
    const auto find = [&](std::string_view name, TRITONSERVER_DataType datatype) {
      for (const auto& output : outputs)
        if (output.name == name && output.datatype == datatype) return output.data;
      return std::string_view();
    };
    const auto text = find("text_output", TRITONSERVER_TYPE_BYTES);
    if (text.empty()) return;
    row->begun = true;
    if (auto count = find("num_input_tokens", TRITONSERVER_TYPE_INT32); !count.empty())
      row->num_input_tokens = Unpacker(count).number<int32_t>();
    if (auto count = find("num_output_tokens", TRITONSERVER_TYPE_INT32); !count.empty()) {
      const auto tokens = Unpacker(count).number<int32_t>();
      const auto before = row->llm_call->adds_counts ? std::max(row->num_output_tokens, 0) : 0;
      row->num_output_tokens = before + tokens;
    }
    if (auto data = find("finish_reason", TRITONSERVER_TYPE_BYTES); !data.empty())
      if (auto reason = Unpacker(data).text(); !reason.empty() && reason != "None")
        row->finish_reason = reason;
    row->reader.take(Unpacker(text).text(), &row->text);
  }

  static void end_reason(Row* row, bool stopped) {
    if (stopped) {
      row->finish_reason = "stop";
    } else if (row->llm_call->adds_counts && row->finish_reason.empty() &&
               row->num_output_tokens >= 0) {
      const bool full = row->num_output_tokens >= row->llm_call->max_tokens;
      row->finish_reason = full ? "length" : "stop";
    }
  }

  /// Another LLM answers, if the client has read nothing of this one's answer.
  void llm_failed(const CallPtr& call, size_t index, std::unique_lock<std::mutex>* lock,
                  const Failure& problem, bool timed_out = false) {
    Row& row = call->rows[index];
    auto request = std::exchange(row.generation, nullptr);
    row.generation_s = seconds(row.llm_started, Clock::now());
    if (call->sent) {
      close(call, lock, Failure(TRITONSERVER_ERROR_UNAVAILABLE,
                                "[unavailable] " + row.llm +
                                    " failed after part of the answer was sent"),
            "stream_broken");
    } else {
      auto planning = std::make_shared<Planning>(Stage::kLLMFailed, nullptr,
                                                 std::vector<Target>{{call, index, 1}});
      const bool refused = !timed_out && problem.code == TRITONSERVER_ERROR_INVALID_ARG;
      auto report =
          packed(Kind::kFailed, row, *call, timed_out ? "timeout" : problem.what(), refused);
      lock->unlock();
      ask(planning, std::move(report));
    }
    if (request != nullptr) request->cancel();
  }

  // ---- Answers

  /// Whether the client has gone. Only before the final response: afterwards the question crashes
  /// the server. What is sent to a client that has gone can crash Triton 2.51, too.
  static bool gone(const Call& call) {
    bool cancelled = false;
    log_failed(TRITONBACKEND_ResponseFactoryIsCancelled(call.factory, &cancelled));
    return cancelled;
  }
  static Failure client_gone() {
    return Failure(TRITONSERVER_ERROR_CANCELLED, "[cancelled] the client went away");
  }

  /// Takes the next piece of a stream: the first goes out at once, then what gathers.
  void take_piece(const CallPtr& call, Row* row, std::string_view piece) {
    if (piece.empty()) return;
    const auto now = Clock::now();
    if (!call->sent) row->first_token_s = seconds(call->started, now);
    call->sent = true;
    call->gathered.append(piece);
    if (call->flush_scheduled) return;
    if (now >= call->interval_over) return flush(call);
    call->flush_scheduled = true;
    bool sooner;
    {
      std::lock_guard lock(mutex_);
      sooner = flushes_.empty() || call->interval_over < flushes_.begin()->first;
      flushes_.emplace(call->interval_over, call);
    }
    if (sooner) wake_.notify_one();
  }

  /// Sends what has gathered.
  void flush(const CallPtr& call) {
    if (call->gathered.empty()) return;
    const auto piece = std::exchange(call->gathered, "");
    ClientResponse response(*call);
    response.texts(0, {piece});
    response.send(0);
    call->interval_over =
        Clock::now() + std::chrono::duration_cast<Clock::duration>(
                           std::chrono::duration<double, std::milli>(stream_interval_ms_.load()));
  }

  void answer_if_done(const CallPtr& call, std::unique_lock<std::mutex>* lock) {
    for (const auto& row : call->rows)
      if (!row.done) return;
    flush(call);
    const auto rows = static_cast<int64_t>(call->rows.size());
    const auto texts = [&](std::string Row::*field) {
      std::vector<std::string_view> values;
      for (const auto& row : call->rows) values.push_back(row.*field);
      return values;
    };
    const auto numbers = [&](auto Row::*field) {
      std::vector<std::decay_t<decltype(call->rows[0].*field)>> values;
      for (const auto& row : call->rows) values.push_back(row.*field);
      return values;
    };
    size_t longest = 0;
    for (const auto& row : call->rows) longest = std::max(longest, row.example_ids.size());
    std::vector<int64_t> ids;
    for (auto row_ids : numbers(&Row::example_ids)) {
      row_ids.resize(longest, kPadId);
      ids.insert(ids.end(), row_ids.begin(), row_ids.end());
    }
    ClientResponse response(*call);
    response.texts(0, call->streaming ? std::vector<std::string_view>{""} : texts(&Row::text));
    response.texts(1, texts(&Row::llm));
    response.fixed(2, TRITONSERVER_TYPE_INT64, ids, rows);
    response.fixed(3, TRITONSERVER_TYPE_FP32, numbers(&Row::predicted_quality), rows);
    response.fixed(4, TRITONSERVER_TYPE_BOOL, numbers(&Row::solicit_feedback), rows);
    response.texts(5, texts(&Row::feedback_token));
    response.texts(6, texts(&Row::degraded));
    response.texts(7, texts(&Row::finish_reason));
    response.fixed(8, TRITONSERVER_TYPE_INT32, numbers(&Row::num_input_tokens), rows);
    response.fixed(9, TRITONSERVER_TYPE_INT32, numbers(&Row::num_output_tokens), rows);
    response.send(TRITONSERVER_RESPONSE_COMPLETE_FINAL);
    finish(call, lock, Kind::kAnswered, "");
  }

  /// Ends a call that cannot be answered; nothing if it has ended. The last resort: does not throw.
  void close(const CallPtr& call, const std::exception& problem) try {
    std::unique_lock lock(call->mutex);
    if (call->closed) return;
    const auto* failure = dynamic_cast<const Failure*>(&problem);
    close(call, &lock, failure != nullptr ? *failure : malformed(problem.what()));
  } catch (const std::exception& defect) {
    log(TRITONSERVER_LOG_ERROR, name_ + ": " + defect.what());
  }

  void close(const CallPtr& call, std::unique_lock<std::mutex>* lock, const Failure& failure,
             const char* reason = "error") {
    if (failure.code == TRITONSERVER_ERROR_CANCELLED) call->gathered.clear();
    flush(call);
    ClientResponse(*call).send(TRITONSERVER_RESPONSE_COMPLETE_FINAL, &failure);
    finish(call, lock, Kind::kEnded, reason);
  }

  /// Gives back what belongs to a call after its final response, and reports.
  void finish(const CallPtr& call, std::unique_lock<std::mutex>* lock, Kind kind,
              const char* reason) {
    call->closed = true;
    std::vector<std::shared_ptr<InProcessRequest>> running;
    std::vector<std::string> reports;
    for (auto& row : call->rows) {
      if (row.generation) running.push_back(std::exchange(row.generation, nullptr));
      if (!row.request_id.empty() && !row.refused)
        reports.push_back(packed(kind, row, *call, reason));
    }
    lock->unlock();
    for (const auto& request : running) request->cancel();
    const auto from = nanoseconds(call->started), to = nanoseconds(Clock::now());
    const bool ok = kind == Kind::kAnswered;
    log_failed(TRITONBACKEND_ModelInstanceReportStatistics(call->instance, call->request, ok, from,
                                                           from, to, to));
    if (ok)
      log_failed(TRITONBACKEND_ModelInstanceReportBatchStatistics(
          call->instance, call->rows.size(), from, from, to, to));
    {
      std::lock_guard guard(mutex_);
      open_.erase(call);
    }
    log_failed(TRITONBACKEND_RequestRelease(call->request, TRITONSERVER_REQUEST_RELEASE_ALL));
    log_failed(TRITONBACKEND_ResponseFactoryDelete(call->factory));
    report(std::move(reports));
  }

  // ---- Reports

  static std::string packed(Kind kind, const Row& row, const Call& call, std::string_view reason,
                            bool refused = false) {
    const bool answered = kind == Kind::kAnswered;
    Packer to;
    to.number(kind).text(row.request_id).text(row.llm);
    to.text(answered ? std::string_view(row.text) : std::string_view());
    to.text(answered ? std::string_view(row.finish_reason) : std::string_view());
    to.number(row.num_input_tokens).number(row.num_output_tokens);
    to.number(row.selection_s).number(row.generation_s).number(row.first_token_s);
    to.number(seconds(call.started, Clock::now()));
    to.number(static_cast<uint8_t>(refused)).text(reason);
    return std::move(to).element();
  }

  void report(std::vector<std::string> reports) {
    bool dropped;
    {
      std::lock_guard lock(mutex_);
      for (auto& one : reports) reports_.push_back(std::move(one));
      dropped = reports_.size() > kMaxReports;
      reports_.resize(std::min(reports_.size(), kMaxReports));
    }
    if (dropped) complain("reports were dropped: ", "router does not keep up");
    send_reports();
  }

  /// Sends those that wait, if none are on their way.
  void send_reports() {
    for (;;) {
      auto batch = std::make_shared<std::vector<std::string>>();
      {
        std::lock_guard lock(mutex_);
        if (reporting_ || reports_.empty()) return;
        reporting_ = true;
        while (!reports_.empty() && batch->size() < kMaxRows) {
          batch->push_back(std::move(reports_.front()));
          reports_.pop_front();
        }
      }
      try {
        auto request = std::make_shared<InProcessRequest>(
            server_, "router",
            [self = shared_from_this(), batch](const Response& response, bool final) {
              if (const auto error = response.error())
                self->complain("reports were not taken: ", error->what());
              if (!final) return;
              {
                std::lock_guard lock(self->mutex_);
                self->reporting_ = false;
              }
              self->send_reports();
            });
        request->add_input("report", TRITONSERVER_TYPE_BYTES,
                           {static_cast<int64_t>(batch->size()), 1});
        for (const auto& one : *batch) request->append("report", one);
        InProcessRequest::send(request);
        return;
      } catch (const Failure& problem) {
        complain("reports were not taken: ", problem.what());
        std::lock_guard lock(mutex_);
        reporting_ = false;
      }
    }
  }

  /// Logs it, the same `what` at most once a minute.
  void complain(const std::string& what, const std::string& why) {
    {
      std::lock_guard lock(mutex_);
      const auto now = Clock::now();
      auto& quiet_until = quiet_until_[what];
      if (now < quiet_until) return;
      quiet_until = now + std::chrono::minutes(1);
    }
    log(TRITONSERVER_LOG_WARN, name_ + ": " + what + why);
  }

  // ---- Time

  void run_timer() {
    auto next_poll = Clock::now() + kPollEvery;
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      const auto next = flushes_.empty() ? next_poll : std::min(next_poll, flushes_.begin()->first);
      wake_.wait_until(lock, next);
      const auto now = Clock::now();
      std::vector<std::weak_ptr<Call>> due;
      while (!flushes_.empty() && flushes_.begin()->first <= now) {
        due.push_back(std::move(flushes_.begin()->second));
        flushes_.erase(flushes_.begin());
      }
      std::vector<CallPtr> open;
      std::vector<PlanningPtr> overdue;
      if (now >= next_poll) {
        next_poll = now + kPollEvery;
        open.assign(open_.begin(), open_.end());
        for (const auto& planning : planning_)
          if (now >= planning->deadline) overdue.push_back(planning);
      }
      lock.unlock();
      for (const auto& call : due) {
        guarded(call.lock(), [&](auto& c, auto*) {
          c->flush_scheduled = false;
          if (!gone(*c)) flush(c);  // otherwise the next poll ends it
        });
      }
      for (const auto& planning : overdue) {
        if (!end(planning)) continue;
        if (planning->stage == Stage::kSelection) stall();
        if (planning->lane != nullptr) run(planning->lane);
        no_plan(planning, "no answer within " + std::to_string(selection_timeout_ms_) + " ms");
      }
      for (const auto& call : open) guarded(call, [&](auto& c, auto* l) { poll(c, l, now); });
      open.clear();
      overdue.clear();
      lock.lock();
    }
  }

  /// Runs `work` for a call that is open, under its lock.
  template <typename Work>
  void guarded(const CallPtr& call, Work work) {
    if (call == nullptr) return;
    try {
      std::unique_lock lock(call->mutex);
      if (!call->closed) work(call, &lock);
    } catch (const std::exception& problem) {
      close(call, problem);
    }
  }

  /// Ends a call whose client has gone, and its LLM calls that take too long.
  void poll(const CallPtr& call, std::unique_lock<std::mutex>* lock, TimePoint now) {
    if (gone(*call)) return close(call, lock, client_gone(), "cancelled");
    for (size_t i = 0; i < call->rows.size(); ++i) {
      if (!lock->owns_lock()) lock->lock();
      if (call->closed) return;
      if (call->rows[i].generation && now >= call->rows[i].deadline)
        llm_failed(call, i, lock, malformed("timeout"), true);
    }
  }

  const std::shared_ptr<Server> server_;
  const std::string name_;
  const bool decoupled_;

  // Settings; `router` sends them with each LLM call.
  std::atomic<size_t> max_in_flight_{4096};
  std::atomic<int> selections_in_flight_{2}, selection_timeout_ms_{5'000};
  std::atomic<int> request_timeout_ms_{600'000};
  std::atomic<double> stream_interval_ms_{40.0};

  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  bool stopping_ = false;
  bool stalled_ = false;  // `selection` did not answer in time, or took long to fail
  bool probing_ = false;  // whether a request is out to see when it does again
  Lane selection_{Stage::kSelection, 0, {}}, router_{Stage::kRouterAlone, 0, {}};
  std::set<CallPtr> open_;
  std::set<PlanningPtr> planning_;
  std::multimap<TimePoint, std::weak_ptr<Call>> flushes_;
  std::deque<std::string> reports_;
  bool reporting_ = false;
  std::map<std::string, TimePoint> quiet_until_;
  std::thread timer_;
};

/// Runs what Triton called; an exception becomes an error.
template <typename Work>
TRITONSERVER_Error* no_throw(Work work) try {
  work();
  return nullptr;
} catch (const Failure& problem) {
  return TRITONSERVER_ErrorNew(problem.code, problem.what());
} catch (const std::exception& problem) {
  return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, problem.what());
}

bool is_decoupled(TRITONBACKEND_Model* model) {
  TRITONSERVER_Message* message;
  check(TRITONBACKEND_ModelConfig(model, 1, &message));
  const char* json;
  size_t size;
  check(TRITONSERVER_MessageSerializeToJson(message, &json, &size));
  const bool found = std::string_view(json, size).find("\"decoupled\":true") != std::string::npos;
  check(TRITONSERVER_MessageDelete(message));
  return found;
}

}  // namespace
}  // namespace echolm

extern "C" {

TRITON_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  return echolm::no_throw([model] {
    TRITONSERVER_Server* server;
    const char* name;
    echolm::check(TRITONBACKEND_ModelServer(model, &server));
    echolm::check(TRITONBACKEND_ModelName(model, &name));
    auto door = std::make_shared<echolm::Door>(server, name, echolm::is_decoupled(model));
    auto state = std::make_unique<std::shared_ptr<echolm::Door>>(door);
    echolm::check(TRITONBACKEND_ModelSetState(model, state.get()));
    door->start();
    state.release();
  });
}

TRITON_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  return echolm::no_throw([model] {
    void* state;
    echolm::check(TRITONBACKEND_ModelState(model, &state));
    std::unique_ptr<std::shared_ptr<echolm::Door>> door(
        static_cast<std::shared_ptr<echolm::Door>*>(state));
    if (door != nullptr) (*door)->stop();
  });
}

TRITON_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, uint32_t count) {
  return echolm::no_throw([=] {
    TRITONBACKEND_Model* model;
    void* state;
    echolm::check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    echolm::check(TRITONBACKEND_ModelState(model, &state));
    for (uint32_t i = 0; i < count; ++i)
      (*static_cast<std::shared_ptr<echolm::Door>*>(state))->accept(instance, requests[i]);
  });
}
}
