// The models `echolm` and `echolm_stream`: from a client's request to its answer.
//
// A request is selected for (model `selection`, or `router` alone), then an LLM is called, another
// one if it fails, and afterwards `router` is told how it ended. All models run in the same server
// and are called in process.
//
// Triton's threads only read requests and responses. What follows from them happens in the one
// thread of a Door, one thing after the other, so that nothing else needs a lock.

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "in_process.h"
#include "proof.h"
#include "triton_api.h"

namespace echolm {
namespace {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;
using std::chrono::milliseconds;

constexpr size_t kMaxRows = 64;            // of a request to `selection` or `router`
constexpr size_t kMaxReports = 10'000;     // that wait for `router`
constexpr milliseconds kPollEvery{50};     // whether clients have gone, deadlines have passed
constexpr milliseconds kSlowFailure{500};  // Triton sees a dead model process after a second
constexpr milliseconds kUnloadWait{5'000};

double seconds(TimePoint from, TimePoint to) {
  return std::chrono::duration<double>(to - from).count();
}
uint64_t nanoseconds(TimePoint time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

/// Parameters of a request that Triton's front ends and tracing headers bring.
const std::set<std::string_view> kParameters = {
    "id",      "triton_enable_empty_final_response", "traceparent", "tracestate",
    "baggage", "binary_data_output"};

// ---- What `router` says; packed by echolm/router/packed.py, which describes the parts

struct Head {
  int32_t status = 0;        // of an error, if there is one
  int32_t token_limit = -1;  // -1: the LLM says why its answer ended
  int32_t max_in_flight = 4096, selections_in_flight = 2;
  int32_t selection_timeout_ms = 5'000, request_timeout_ms = 600'000;
  double stream_interval_ms = 40.0;
  uint8_t cumulative = 0, gathers = 0, padding[6] = {};
};
static_assert(sizeof(Head) == 40, "without gaps, as it is packed");

/// What an LLM's output does to the client's of the same name.
enum class Rule : uint8_t { kNothing, kReplace, kAppend, kAdd, kJoin };

struct Output : Tensor {
  Rule rule;
  std::vector<int64_t> outer;  // dimensions between the row's and the last one

  /// Appends the elements of a JSON array to those of the one that it holds, if there is one.
  void join(std::string_view array) {
    if (array.size() <= 2 || array.front() != '[' || array.back() != ']') return;
    const auto before = text();
    std::string joined(before.substr(0, before.size() - !before.empty()));
    joined.append(before.empty() ? "[" : ",").append(array.substr(1));
    data = Packer().text(joined).packed;
  }
  /// Whether there is something that a stream's next piece takes along.
  bool gathered() const { return rule == Rule::kJoin && !text().empty(); }
};

struct Plan {
  Head head;
  std::string request_id, llm, model;
  std::string text;  // the error, or the answer, where no model is called
  std::vector<std::string> stop_words;
  Tensors inputs;               // of the model
  std::vector<Output> outputs;  // the client's, besides the text

  void read(std::string_view packed) {
    Unpacker from(packed);
    head = from.number<Head>();
    for (auto* to : {&request_id, &llm, &model, &text}) *to = from.text();
    for (auto n = from.number<uint32_t>(); n > 0; --n) stop_words.emplace_back(from.text());
    for (auto n = from.number<uint32_t>(); n > 0; --n) inputs.push_back(tensor(&from));
    for (auto n = from.number<uint32_t>(); n > 0; --n) {
      const auto rule = from.number<Rule>();
      outputs.push_back({tensor(&from), rule, {}});
      auto& output = outputs.back();
      if (!output.shape.empty()) output.outer.assign(output.shape.begin(), output.shape.end() - 1);
    }
  }
  static Tensor tensor(Unpacker* from) {
    Tensor read;
    read.name = from->text();
    read.datatype = TRITONSERVER_StringToDataType(std::string(from->text()).c_str());
    for (auto n = from->number<uint32_t>(); n > 0; --n)
      read.shape.push_back(from->number<int64_t>());
    read.data = from->text();
    return read;
  }
};

// ---- A client's request

/// One row of a client's request, which has a plan and an LLM call of its own.
struct Row {
  struct Client* client = nullptr;
  Tensors inputs;         // of `selection` or `router`
  std::string merge_key;  // rows with the same one can be asked about together
  Plan plan;
  std::shared_ptr<struct Ask> llm_call;  // that is awaited
  TimePoint llm_started;
  int attempts = 0;
  bool begun = false;    // whether any response of the LLM held text, be it empty
  bool stopped = false;  // at a stop word
  bool done = false;
  std::string raw;   // all text of the LLM
  std::string text;  // the part of it that is certain to be the answer's
  double selection_s = 0, generation_s = 0, first_token_s = -1;

  /// Takes a tensor of an LLM's response.
  void take(const Tensor& from) {
    if (from.datatype == TRITONSERVER_TYPE_BYTES && from.elements() != 1) return;
    if (from.name == "text_output" && from.datatype == TRITONSERVER_TYPE_BYTES) {
      begun = true;
      if (plan.head.cumulative) raw.clear();
      raw.append(from.text());
      return;
    }
    Output* to = find(plan.outputs, from.name);
    if (to == nullptr || to->rule == Rule::kNothing || to->datatype != from.datatype) return;
    // NVIDIA's llmapi sends Python's None as text as long as there is no finish reason.
    if (from.datatype == TRITONSERVER_TYPE_BYTES && (from.text().empty() || from.text() == "None"))
      return;
    if (to->rule == Rule::kAppend) {
      to->shape = {to->elements() + from.elements()};
      to->data.append(from.data);
    } else if (to->rule == Rule::kJoin) {
      to->join(from.text());
    } else if (to->rule == Rule::kAdd) {
      const int32_t before = std::max(Unpacker(to->data).number<int32_t>(), 0);
      to->data = Packer().number(before + Unpacker(from.data).number<int32_t>()).packed;
    } else {
      static_cast<Tensor&>(*to) = from;
    }
  }

  /// Brings the answer's text up to date: repetition undone, cut at the first stop word.
  void release_text(bool final) {
    size_t end = raw.size();
    // An incomplete character becomes a whole one with the next token.
    constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
    if (plan.head.cumulative && !final)
      while (end >= 3 && raw.compare(end - 3, 3, kReplacement) == 0) end -= 3;
    size_t held = 0;  // the longest end of the text that can become a stop word
    for (const auto& word : plan.stop_words) {
      if (const size_t at = raw.find(word, text.size()); at < end) {
        stopped = true;
        end = at;
      }
      for (size_t n = std::min(word.size(), end); n > held; --n)
        if (raw.compare(end - n, n, word, 0, n) == 0) held = n;
    }
    if (!final && !stopped) end -= held;
    if (end > text.size()) text.append(raw, text.size(), end - text.size());
  }

  /// Says why the answer ended, where the LLM did not.
  void end_reason() {
    auto* reason = find(plan.outputs, "finish_reason");
    const auto* tokens = find(plan.outputs, "num_output_tokens");
    if (reason == nullptr || tokens == nullptr) return;
    const auto count = Unpacker(tokens->data).number<int32_t>();
    if (stopped)
      reason->data = Packer().text("stop").packed;
    else if (plan.head.token_limit >= 0 && count >= 0 && reason->text().empty())
      reason->data = Packer().text(count >= plan.head.token_limit ? "length" : "stop").packed;
  }
};
using RowPtr = std::shared_ptr<Row>;

struct Client {
  TRITONBACKEND_ModelInstance* instance = nullptr;
  TRITONBACKEND_Request* request = nullptr;
  TRITONBACKEND_ResponseFactory* factory = nullptr;
  const TimePoint started = Clock::now();
  std::set<std::string> wanted_outputs;
  bool streaming = false;
  std::vector<Row> rows;
  const char* ended = nullptr;  // why, once the final response is out

  bool sent = false;       // whether any piece was taken for the client
  std::string gathered;    // pieces that wait for the end of the interval
  bool scheduled = false;  // whether they go out at its end
  TimePoint interval_over;

  /// Sends a response; outputs that the client does not want are left out.
  void respond(const Tensors& outputs, uint32_t flags, const Failure* failure = nullptr) const {
    TRITONBACKEND_Response* made;
    check(TRITONBACKEND_ResponseNewFromFactory(&made, factory));
    std::unique_ptr<TRITONBACKEND_Response, decltype(&TRITONBACKEND_ResponseDelete)> response(
        made, TRITONBACKEND_ResponseDelete);
    for (const auto& [name, datatype, shape, data] : outputs) {
      if (wanted_outputs.count(name) == 0) continue;
      TRITONBACKEND_Output* output;
      void* to = nullptr;
      auto memory = TRITONSERVER_MEMORY_CPU;
      int64_t memory_id = 0;
      check(TRITONBACKEND_ResponseOutput(made, &output, name.c_str(), datatype, shape.data(),
                                         static_cast<uint32_t>(shape.size())));
      check(TRITONBACKEND_OutputBuffer(output, &to, data.size(), &memory, &memory_id));
      if (memory > 1) throw malformed("output: expected memory of the CPU");
      if (!data.empty()) memcpy(to, data.data(), data.size());
    }
    auto* error =
        failure == nullptr ? nullptr : TRITONSERVER_ErrorNew(failure->code, failure->what());
    log_failed(TRITONBACKEND_ResponseSend(response.release(), flags, error));
    if (error != nullptr) TRITONSERVER_ErrorDelete(error);
  }
};
using ClientPtr = std::shared_ptr<Client>;

// ---- Requests to other models

/// Of whom what is wanted: plans of `selection` or `router`, text of an LLM; `router` gets reports.
enum class Want { kSelection, kRouterPlan, kReport, kLLM };

/// Rows with the same want, of whose requests few run at a time, so that those that wait go
/// together.
struct Lane {
  const Want want;
  int running = 0;
  std::deque<RowPtr> waiting;
};

/// One request to another model.
struct Ask : InProcessRequest {
  Ask(Want want, std::vector<RowPtr> rows, Tensors inputs, Lane* lane = nullptr)
      : InProcessRequest(std::move(inputs)), want(want), rows(std::move(rows)), lane(lane) {}
  const Want want;
  const std::vector<RowPtr> rows;
  Lane* const lane;  // in which it has a place; null: in none
  std::string model;  // to which it was sent
  TimePoint sent, deadline;
  bool over = false;  // nobody waits for it any more
};
using AskPtr = std::shared_ptr<Ask>;

enum class Kind : uint8_t { kAnswered = 0, kFailed = 1, kEnded = 2 };  // of a report

/// One instance of a model. Outlives what it has asked other models for.
class Door : public std::enable_shared_from_this<Door> {
 public:
  Door(TRITONSERVER_Server* server, const char* name)
      : server_(server), name_(name), decoupled_(name_ == "echolm_stream") {
    thread_ = std::thread([this] { run(); });
  }

  /// Ends the thread, after it has waited a while for other models' answers.
  void stop() {
    {
      std::lock_guard lock(mutex_);
      stop_before_ = Clock::now() + kUnloadWait;
    }
    wake_.notify_one();
    thread_.join();
  }

  void accept(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request) {
    auto client = std::make_shared<Client>();
    client->instance = instance;
    client->request = request;
    check(TRITONBACKEND_ResponseFactoryNew(&client->factory, request));
    try {
      read(client.get());
      post([this, client] { begin(client); });
    } catch (const std::exception& problem) {
      post([this, client, failure = failure_of(problem)] { close(client.get(), failure); });
    }
  }

 private:
  // ---- The thread

  void post(std::function<void()> work) {
    {
      std::lock_guard lock(mutex_);
      if (ended_) return;
      posted_.push_back(std::move(work));
      if (posted_.size() > 1) return;
    }
    wake_.notify_one();
  }

  void run() {
    pthread_setname_np(pthread_self(), "front_door");  // shown by top -H
    auto next_poll = Clock::now() + kPollEvery;
    std::unique_lock lock(mutex_);
    while (Clock::now() < stop_before_ &&
           (stop_before_ == TimePoint::max() || awaited_ > 0 || !posted_.empty())) {
      const auto next = flushes_.empty() ? next_poll : std::min(next_poll, flushes_.begin()->first);
      if (posted_.empty()) wake_.wait_until(lock, next);
      const auto works = std::exchange(posted_, {});
      lock.unlock();
      for (const auto& work : works) work();
      const auto now = Clock::now();
      while (!flushes_.empty() && flushes_.begin()->first <= now) {
        const auto client = flushes_.begin()->second.lock();
        flushes_.erase(flushes_.begin());
        if (client == nullptr || client->ended != nullptr) continue;
        if (!gone(*client)) guarded(client.get(), [&] { flush(client.get()); });
      }
      if (now >= next_poll) {
        next_poll = now + kPollEvery;
        poll(now);
      }
      lock.lock();
    }
    ended_ = true;
    posted_.clear();
  }

  /// Ends requests whose clients have gone, and what other models take too long for.
  void poll(TimePoint now) {
    for (const auto& [client, keeps] : std::map<Client*, ClientPtr>(open_))
      if (gone(*client)) close(client, client_gone(), "cancelled");
    std::map<std::string, bool> ready;
    const auto lost = [&](const AskPtr& ask) {
      const auto [at, is_new] = ready.try_emplace(ask->model, true);
      if (is_new) at->second = is_ready(ask->model);
      return !at->second;
    };
    for (const auto& ask : std::vector<AskPtr>(asks_.begin(), asks_.end())) {
      if (ask->over) continue;
      const bool llm = ask->want == Want::kLLM;
      std::string why;
      if (lost(ask))
        why = ask->model + " is being loaded anew";
      else if (now >= ask->deadline)
        why = llm ? "timeout"
                  : "no answer within " + std::to_string(settings_.selection_timeout_ms) + " ms";
      if (!why.empty()) take(ask, {Failure(TRITONSERVER_ERROR_UNAVAILABLE, why), {}, false});
    }
    for (auto ask = overdue_.begin(); ask != overdue_.end();)
      ask = lost(*ask) ? overdue_.erase(ask) : std::next(ask);
  }

  /// Whether the server has the model. It has not while `echolm serve` loads it anew, since its
  /// process died: what that process had in flight will never be answered.
  bool is_ready(const std::string& model) const {
    bool ready = true;
    // A server that stops says nothing of its models, which still answer.
    if (auto* error = TRITONSERVER_ServerModelIsReady(server_, model.c_str(), -1, &ready)) {
      TRITONSERVER_ErrorDelete(error);
      return true;
    }
    return ready;
  }

  static Failure failure_of(const std::exception& problem) {
    const auto* failure = dynamic_cast<const Failure*>(&problem);
    return failure != nullptr ? *failure : malformed(problem.what());
  }

  /// Runs work for a client, whose request ends if it throws.
  template <typename Work>
  void guarded(Client* client, Work work) try {
    work();
  } catch (const std::exception& problem) {
    close(client, failure_of(problem));
  }

  // ---- The client's request

  /// Triton makes parameters of the fields of `generate` that are no inputs, which would be lost.
  static void refuse_parameters(TRITONBACKEND_Request* request) {
    uint32_t count;
    check(TRITONBACKEND_RequestParameterCount(request, &count));
    for (uint32_t i = 0; i < count; ++i) {
      const char* name;
      TRITONSERVER_ParameterType type;
      const void* value;
      check(TRITONBACKEND_RequestParameter(request, i, &name, &type, &value));
      if (kParameters.count(name) == 0)
        throw Failure(TRITONSERVER_ERROR_INVALID_ARG,
                      "[invalid_request] " + std::string(name) +
                          ": expected the name of an input, got an unknown one; leave it out");
    }
  }

  void read(Client* client) const {
    uint32_t count;
    check(TRITONBACKEND_RequestOutputCount(client->request, &count));
    for (uint32_t i = 0; i < count; ++i) {
      const char* name;
      check(TRITONBACKEND_RequestOutputName(client->request, i, &name));
      client->wanted_outputs.insert(name);
    }
    refuse_parameters(client->request);
    Tensors inputs;
    bool asks = false;
    check(TRITONBACKEND_RequestInputCount(client->request, &count));
    for (uint32_t i = 0; i < count; ++i) {
      TRITONBACKEND_Input* input;
      const char* name;
      TRITONSERVER_DataType datatype;
      const int64_t* shape;
      uint32_t dims, buffers;
      uint64_t size;
      check(TRITONBACKEND_RequestInputByIndex(client->request, i, &input));
      check(TRITONBACKEND_InputProperties(input, &name, &datatype, &shape, &dims, &size, &buffers));
      Tensor taken{name, datatype, {shape, shape + dims}, {}};
      for (uint32_t b = 0; b < buffers; ++b) {
        const void* data;
        auto memory = TRITONSERVER_MEMORY_CPU;
        int64_t memory_id = 0;
        check(TRITONBACKEND_InputBuffer(input, b, &data, &size, &memory, &memory_id));
        if (memory > 1) throw malformed("input: expected memory of the CPU");
        taken.data.append(static_cast<const char*>(data), size);
      }
      asks = asks || taken.name == "text_input" || taken.name == "messages";
      if (taken.name == "stream") {
        client->streaming = decoupled_ && !taken.data.empty() && taken.data[0] != 0;
        if (!decoupled_) continue;
      }
      inputs.push_back(std::move(taken));
    }
    if (!asks)  // the ensemble's first step would wait for them
      throw Failure(TRITONSERVER_ERROR_INVALID_ARG,
                    "[invalid_request] text_input, messages: expected one of these inputs, got "
                    "none of them");
    // Triton keeps them in no order, and sees to it that all have the same number of rows.
    std::sort(inputs.begin(), inputs.end(), [](auto& a, auto& b) { return a.name < b.name; });
    const int64_t rows = inputs.empty() || inputs[0].shape.empty() ? 0 : inputs[0].shape[0];
    if (rows < 1)
      throw Failure(TRITONSERVER_ERROR_INVALID_ARG,
                    "[invalid_request] batch: expected one row or more, got none");
    if (decoupled_ && rows != 1)
      throw Failure(TRITONSERVER_ERROR_INVALID_ARG,
                    "[invalid_request] batch: expected one request for " + name_ + ", got " +
                        std::to_string(rows));
    client->rows.resize(static_cast<size_t>(rows));
    std::string merge_key;
    for (const auto& input : inputs) {
      merge_key += input.name + ':' + std::to_string(input.datatype);
      for (size_t d = 1; d < input.shape.size(); ++d)
        merge_key += ',' + std::to_string(input.shape[d]);
      merge_key += ';';
      Unpacker rest(input.data);
      for (auto& row : client->rows) {
        const auto data = rest.elements(input.datatype, input.elements() / rows);
        row.inputs.push_back({input.name, input.datatype, input.shape, std::string(data)});
      }
    }
    for (auto& row : client->rows) {
      row.client = client;
      row.merge_key = merge_key;
    }
  }

  void begin(const ClientPtr& client) {
    const size_t limit = settings_.max_in_flight, rows = client->rows.size();
    if (rows > limit)
      return close(client.get(), Failure(TRITONSERVER_ERROR_INVALID_ARG,
                                         "[invalid_request] batch: expected at most " +
                                             std::to_string(limit) +
                                             " rows (limits.max_in_flight), got " +
                                             std::to_string(rows) + "; send fewer at a time"));
    if (rows_in_flight_ + rows > limit) {
      close(client.get(), Failure(TRITONSERVER_ERROR_UNAVAILABLE,
                                  "[unavailable] " + name_ + ": " + std::to_string(rows_in_flight_) +
                                      " requests are in flight already; try again later, or raise "
                                      "limits.max_in_flight"));
      return report(Kind::kEnded, client->rows[0], "overload");
    }
    rows_in_flight_ += rows;
    open_.emplace(client.get(), client);
    for (auto& row : client->rows)
      (goes_to_router(row) ? router_ : selection_).waiting.emplace_back(client, &row);
    run(&selection_);
    run(&router_);
  }

  /// Whether nothing that is found would be used.
  static bool goes_to_router(const Row& row) {
    const auto* llm = find(row.inputs, "llm");
    const auto* cache = find(row.inputs, "cache_control");
    return llm != nullptr && cache != nullptr && !llm->text().empty() && llm->text() != "auto" &&
           cache->text() == "no-cache";
  }

  // ---- Other models

  void send(const AskPtr& ask, const std::string& model, int timeout_ms, const std::string& proof,
            const std::string& id = "", double stream_interval_ms = 0) {
    ask->model = model;
    ask->sent = Clock::now();
    ask->deadline = ask->sent + milliseconds(timeout_ms);
    if (!ask->over) asks_.insert(ask);
    ++awaited_;
    const auto on_reply = [door = shared_from_this()](const auto& request, Reply reply) {
      door->post([door = door.get(), ask = std::static_pointer_cast<Ask>(request),
                  reply = std::move(reply)] { door->take(ask, reply); });
    };
    try {
      ask->send(server_, model, id, stream_interval_ms, proof, on_reply);
    } catch (const Failure& problem) {
      on_reply(ask, {problem, {}, true});
    }
  }

  /// Asks `selection` or `router`.
  void ask_for_plans(const AskPtr& ask) {
    send(ask, ask->want == Want::kSelection ? "selection" : "router",
         settings_.selection_timeout_ms, proofs_.of("selection", ask->inputs));
  }

  /// Asks `router` about rows of which `selection` has found nothing.
  void ask_router_alone(const std::vector<RowPtr>& rows, Tensors inputs) {
    const std::vector<std::string> why(rows.size(), "retrieval unavailable");
    inputs.push_back(Tensor::of_texts("retrieval_degraded", why));
    ask_for_plans(std::make_shared<Ask>(Want::kRouterPlan, rows, std::move(inputs)));
  }

  /// Takes what a model has answered, or that it has not in time.
  void take(const AskPtr& ask, const Reply& reply) {
    if (reply.final) --awaited_;
    const bool late = ask->over;
    if (ask->want == Want::kLLM) {
      const auto& row = ask->rows[0];
      if (!late) guarded(row->client, [&] { take_generated(row, reply); });
      return;
    }
    if (ask->want == Want::kSelection) watch_selection(ask, reply);
    end(ask);
    if (reply.error) return late ? void() : no_plan(*ask, reply.error->what());
    if (ask->want == Want::kReport) return;
    const auto* plans = find(reply.tensors, "plan");
    Unpacker rest(plans == nullptr ? std::string_view() : plans->data);
    for (const auto& row : ask->rows)
      guarded(row->client, [&] { take_plan(row, rest.text(), late); });
  }

  /// Nobody waits for it any more.
  void end(const AskPtr& ask) {
    if (std::exchange(ask->over, true)) return;
    asks_.erase(ask);
    if (ask->lane == nullptr) return;
    --ask->lane->running;
    run(ask->lane);
  }

  // ---- Plans

  /// Sends what waits in the lane, as far as there are places.
  void run(Lane* lane) {
    for (;;) {
      const bool bypassed = lane->want == Want::kSelection && !overdue_.empty();
      const int places = lane->want == Want::kReport ? 1 : settings_.selections_in_flight;
      if (!bypassed && lane->running >= places) return;
      const auto rows = gather(lane);
      if (rows.empty()) return;
      if (!bypassed) ++lane->running;  // until its end
      Tensors inputs = rows[0]->inputs;
      for (size_t k = 0; k < inputs.size(); ++k) {
        inputs[k].shape[0] = static_cast<int64_t>(rows.size());
        for (size_t i = 1; i < rows.size(); ++i) inputs[k].data += rows[i]->inputs[k].data;
      }
      if (bypassed)
        ask_router_alone(rows, std::move(inputs));
      else
        ask_for_plans(std::make_shared<Ask>(lane->want, rows, std::move(inputs), lane));
    }
  }

  /// Takes those from the lane that can go together.
  static std::vector<RowPtr> gather(Lane* lane) {
    std::vector<RowPtr> rows;
    std::deque<RowPtr> others;
    for (auto& row : lane->waiting) {
      if (row->client != nullptr && row->client->ended != nullptr) continue;
      const bool fits =
          rows.empty() || (rows.size() < kMaxRows && row->merge_key == rows[0]->merge_key);
      if (fits)
        rows.push_back(std::move(row));
      else
        others.push_back(std::move(row));
    }
    lane->waiting = std::move(others);
    return rows;
  }

  /// Keeps the requests to `selection` that are overdue. As long as there is one, nobody waits for
  /// `selection`: requests go without examples, until what was overdue is answered, or is lost.
  void watch_selection(const AskPtr& ask, const Reply& reply) {
    if (!reply.final) overdue_.insert(ask);  // its time is over
    if (reply.final) overdue_.erase(ask);
    if (!reply.final || !reply.error || Clock::now() < ask->sent + kSlowFailure) return;
    // A dead process fails each request so slowly. This one is to be overdue until it lives again.
    const auto probe = std::make_shared<Ask>(Want::kSelection, ask->rows, ask->inputs);
    probe->over = true;
    overdue_.insert(probe);
    ask_for_plans(probe);
  }

  /// The rows get no plan, or `router` is asked alone where `selection` failed.
  void no_plan(const Ask& ask, const std::string& message) {
    if (ask.want == Want::kReport) return complain("reports were not taken: ", message);
    if (ask.want == Want::kSelection) {
      complain("selection failed: ", message);
      return ask_router_alone(ask.rows, ask.inputs);
    }
    for (const auto& row : ask.rows)
      close(row->client,
            Failure(TRITONSERVER_ERROR_UNAVAILABLE, "[unavailable] router: " + message));
  }

  void take_plan(const RowPtr& row, std::string_view packed, bool late) {
    Client* client = row->client;
    Plan plan;
    std::optional<Failure> failure;
    try {
      plan.read(packed);
      if (plan.head.status != 0) failure.emplace(plan.head.status, plan.text);
    } catch (const Failure& problem) {
      failure = problem;
    }
    if (late || client->ended != nullptr) {
      // `router` waits for the report of a plan that it has made, be it not wanted any more.
      Row unwanted;
      unwanted.client = client;
      unwanted.plan = std::move(plan);
      if (!unwanted.plan.request_id.empty() && unwanted.plan.request_id != row->plan.request_id)
        report(Kind::kEnded, unwanted, late ? "late" : client->ended);
      return;
    }
    row->plan = std::move(plan);
    if (row->attempts == 0) row->selection_s = seconds(client->started, Clock::now());
    if (failure) return close(client, *failure);
    settings_ = row->plan.head;
    if (!row->plan.model.empty()) return call_llm(row);
    row->text = row->plan.text;
    if (client->streaming) take_piece(row, row->text);
    row->done = true;
    answer_if_done(client);
  }

  // ---- LLMs

  void call_llm(const RowPtr& row) {
    row->raw.clear();
    row->text.clear();
    row->begun = row->stopped = false;
    row->llm_started = Clock::now();
    row->llm_call =
        std::make_shared<Ask>(Want::kLLM, std::vector<RowPtr>{row}, std::move(row->plan.inputs));
    const auto attempt = std::to_string(row->attempts++);
    const bool ours = row->plan.head.gathers;  // others may refuse parameters that they do not know
    const bool gathers = row->client->streaming && ours;
    send(row->llm_call, row->plan.model, settings_.request_timeout_ms,
         ours ? proofs_.of(row->plan.model, row->llm_call->inputs) : "",
         row->plan.request_id.empty() ? "" : row->plan.request_id + "-" + attempt,
         gathers ? settings_.stream_interval_ms : 0);
  }

  void take_generated(const RowPtr& row, const Reply& reply) {
    Client* client = row->client;
    if (client->streaming && gone(*client)) return close(client, client_gone(), "cancelled");
    if (reply.error) return llm_failed(row, *reply.error);
    for (const auto& tensor : reply.tensors) row->take(tensor);
    if (reply.final && !row->begun)
      return llm_failed(row, Failure(TRITONSERVER_ERROR_UNAVAILABLE,
                                     row->plan.model + ": ended without an answer"));
    const size_t known = row->text.size();
    row->release_text(reply.final);
    if (client->streaming) take_piece(row, std::string_view(row->text).substr(known));
    if (!reply.final && !row->stopped) return;
    end_llm_call(row.get(), !reply.final);
    row->end_reason();
    row->done = true;
    answer_if_done(client);
  }

  /// No response of the row's LLM counts any more.
  void end_llm_call(Row* row, bool cancel) {
    const auto call = std::exchange(row->llm_call, nullptr);
    if (call == nullptr) return;
    end(call);
    row->generation_s = seconds(row->llm_started, Clock::now());
    if (cancel) call->cancel();
  }

  /// Another LLM answers, if the client has read nothing of this one's answer.
  void llm_failed(const RowPtr& row, const Failure& problem) {
    end_llm_call(row.get(), true);
    if (row->client->sent)
      return close(
          row->client,
          Failure(TRITONSERVER_ERROR_UNAVAILABLE,
                  "[unavailable] " + row->plan.llm + " failed after part of the answer was sent"),
          "stream_broken");
    const bool refused = problem.code == TRITONSERVER_ERROR_INVALID_ARG;
    ask_for_plans(std::make_shared<Ask>(
        Want::kRouterPlan, std::vector<RowPtr>{row},
        Tensors{report_tensor(Kind::kFailed, *row, problem.what(), refused)}));
  }

  // ---- Answers

  /// Whether the client has gone. Only before the final response: afterwards the question crashes
  /// the server. What is sent to a client that has gone can crash Triton 2.51, too.
  static bool gone(const Client& client) {
    bool cancelled = false;
    if (client.ended == nullptr)
      log_failed(TRITONBACKEND_ResponseFactoryIsCancelled(client.factory, &cancelled));
    return cancelled;
  }
  static Failure client_gone() {
    return Failure(TRITONSERVER_ERROR_CANCELLED, "[cancelled] the client went away");
  }

  /// Takes the next piece of a stream: the first goes out at once, then what gathers.
  void take_piece(const RowPtr& row, std::string_view piece) {
    Client* client = row->client;
    const auto& outputs = row->plan.outputs;
    if (piece.empty() &&
        std::none_of(outputs.begin(), outputs.end(), [](auto& one) { return one.gathered(); }))
      return;
    const auto now = Clock::now();
    if (!std::exchange(client->sent, true)) row->first_token_s = seconds(client->started, now);
    client->gathered.append(piece);
    if (client->scheduled) return;
    if (now >= client->interval_over) return flush(client);
    client->scheduled = true;
    flushes_.emplace(client->interval_over, std::shared_ptr<Client>(row, client));
  }

  /// Sends what has gathered of a stream, which has one row, or none if it was refused.
  void flush(Client* client) {
    if (!client->streaming) return;
    client->scheduled = false;
    Tensors piece;
    for (auto& row : client->rows)
      for (auto& output : row.plan.outputs) {
        if (!output.gathered()) continue;
        piece.push_back({output.name, output.datatype, {1, 1}, Packer().text("").packed});
        std::swap(piece.back().data, output.data);
      }
    if (client->gathered.empty() && piece.empty()) return;
    piece.push_back(Tensor::of_texts("text_output", {std::exchange(client->gathered, "")}));
    client->respond(piece, 0);
    const std::chrono::duration<double, std::milli> interval(settings_.stream_interval_ms);
    client->interval_over = Clock::now() + std::chrono::duration_cast<Clock::duration>(interval);
  }

  /// The output of this name of all rows, of which some may have none.
  static Tensor whole(std::vector<Row>& rows, const Output& first) {
    int64_t width = 0;
    for (auto& row : rows)
      if (const auto* own = find(row.plan.outputs, first.name))
        width = std::max(width, own->elements());
    Tensor whole{first.name, first.datatype, {static_cast<int64_t>(rows.size())}, {}};
    whole.shape.insert(whole.shape.end(), first.outer.begin(), first.outer.end());
    whole.shape.push_back(width);
    for (auto& row : rows) {
      const auto* own = find(row.plan.outputs, first.name);
      if (own != nullptr) whole.data += own->data;
      // What fills up a shorter row is -1, NaN, or empty text.
      const auto missing = static_cast<size_t>(width - (own == nullptr ? 0 : own->elements()));
      const bool text = first.datatype == TRITONSERVER_TYPE_BYTES;
      const size_t size = text ? 4 : TRITONSERVER_DataTypeByteSize(first.datatype);
      whole.data.append(missing * size, text ? '\0' : '\xff');
    }
    return whole;
  }

  void answer_if_done(Client* client) {
    auto& rows = client->rows;
    for (const auto& row : rows)
      if (!row.done) return;
    flush(client);
    std::vector<std::string> texts;
    for (const auto& row : rows) texts.push_back(client->streaming ? "" : row.text);
    Tensors answer{Tensor::of_texts("text_output", texts)};
    for (auto& row : rows)
      for (const auto& output : row.plan.outputs)
        if (find(answer, output.name) == nullptr) answer.push_back(whole(rows, output));
    client->respond(answer, TRITONSERVER_RESPONSE_COMPLETE_FINAL);
    finish(client, Kind::kAnswered, "");
  }

  /// Ends a request that cannot be answered; nothing if it has ended.
  void close(Client* client, const Failure& failure, const char* reason = "error") {
    if (client->ended != nullptr) return;
    try {
      // A client that has gone gets nothing of what has gathered.
      if (failure.code != TRITONSERVER_ERROR_CANCELLED) flush(client);
      client->respond({}, TRITONSERVER_RESPONSE_COMPLETE_FINAL, &failure);
    } catch (const std::exception& problem) {
      log(TRITONSERVER_LOG_ERROR, name_ + ": " + problem.what());
    }
    finish(client, Kind::kEnded, reason);
  }

  /// Gives back what belongs to a request after its final response, and reports.
  void finish(Client* client, Kind kind, const char* reason) {
    client->ended = reason;
    for (auto& row : client->rows) {
      end_llm_call(&row, true);
      if (!row.plan.request_id.empty()) report(kind, row, reason);
    }
    const auto from = nanoseconds(client->started), to = nanoseconds(Clock::now());
    const bool ok = kind == Kind::kAnswered;
    log_failed(TRITONBACKEND_ModelInstanceReportStatistics(client->instance, client->request, ok,
                                                           from, from, to, to));
    if (ok)
      log_failed(TRITONBACKEND_ModelInstanceReportBatchStatistics(
          client->instance, client->rows.size(), from, from, to, to));
    log_failed(TRITONBACKEND_RequestRelease(client->request, TRITONSERVER_REQUEST_RELEASE_ALL));
    log_failed(TRITONBACKEND_ResponseFactoryDelete(client->factory));
    const size_t rows = client->rows.size();
    if (open_.erase(client) > 0) rows_in_flight_ -= rows;
  }

  // ---- Reports

  static Tensor report_tensor(Kind kind, const Row& row, std::string_view reason,
                              bool refused = false) {
    Packer to;
    to.number(kind).text(row.plan.request_id).text(row.plan.llm);
    to.text(kind == Kind::kAnswered ? row.text : "");
    for (const char* name : {"finish_reason", "num_input_tokens", "num_output_tokens"}) {
      const auto* output = find(row.plan.outputs, name);
      to.text(output == nullptr ? "" : output->data);
    }
    to.number(row.selection_s).number(row.generation_s).number(row.first_token_s);
    to.number(seconds(row.client->started, Clock::now()));
    to.number(static_cast<uint8_t>(refused)).text(reason);
    return Tensor::of_texts("report", {to.packed});
  }

  void report(Kind kind, const Row& row, std::string_view reason) {
    if (reports_.waiting.size() >= kMaxReports)
      return complain("reports were dropped: ", "router does not keep up");
    reports_.waiting.push_back(std::make_shared<Row>());
    reports_.waiting.back()->inputs = {report_tensor(kind, row, reason)};
    run(&reports_);
  }

  /// Logs it, the same `what` at most once a minute.
  void complain(const std::string& what, const std::string& why) {
    const auto now = Clock::now();
    if (now < quiet_until_[what]) return;
    quiet_until_[what] = now + std::chrono::minutes(1);
    log(TRITONSERVER_LOG_WARN, name_ + ": " + what + why);
  }

  TRITONSERVER_Server* const server_;
  const std::string name_;
  const bool decoupled_;
  const Proofs proofs_;
  std::thread thread_;

  std::mutex mutex_;  // guards the next three
  std::vector<std::function<void()>> posted_;
  TimePoint stop_before_ = TimePoint::max();
  bool ended_ = false;
  std::condition_variable wake_;

  // Only the thread touches what follows.
  Head settings_;    // of the latest plan
  Lane selection_{Want::kSelection, 0, {}}, router_{Want::kRouterPlan, 0, {}},
      reports_{Want::kReport, 0, {}};
  std::map<Client*, ClientPtr> open_;
  size_t rows_in_flight_ = 0;  // of the clients in open_
  std::set<AskPtr> asks_;     // that are not over
  std::set<AskPtr> overdue_;  // to `selection`
  int awaited_ = 0;        // those whose last response has not come
  std::multimap<TimePoint, std::weak_ptr<Client>> flushes_;
  std::map<std::string, TimePoint> quiet_until_;
};

using DoorState = std::shared_ptr<Door>;  // of an instance, as Triton keeps it

}  // namespace

extern "C" {

TRITON_EXPORT Status
TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) try {
  TRITONBACKEND_Model* model;
  TRITONSERVER_Server* server;
  const char* name;
  check(TRITONBACKEND_ModelInstanceModel(instance, &model));
  check(TRITONBACKEND_ModelServer(model, &server));
  check(TRITONBACKEND_ModelName(model, &name));
  auto state = std::make_unique<DoorState>(std::make_shared<Door>(server, name));
  check(TRITONBACKEND_ModelInstanceSetState(instance, state.get()));
  state.release();
  return nullptr;
} catch (const std::exception& problem) {
  return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, problem.what());
}

TRITON_EXPORT Status TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
  void* state = nullptr;
  Status error = TRITONBACKEND_ModelInstanceState(instance, &state);
  const std::unique_ptr<DoorState> door(static_cast<DoorState*>(state));
  if (door != nullptr) (*door)->stop();
  return error;
}

TRITON_EXPORT Status TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                        TRITONBACKEND_Request** requests,
                                                        uint32_t count) try {
  void* state;
  check(TRITONBACKEND_ModelInstanceState(instance, &state));
  for (uint32_t i = 0; i < count; ++i)
    (*static_cast<DoorState*>(state))->accept(instance, requests[i]);
  return nullptr;
} catch (const std::exception& problem) {
  return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, problem.what());
}
}

}  // namespace echolm
