// A fleet's robot in C++ with librdkafka alone: one look at the world, one answer.
//
//   make -C examples/cpp            (needs a C++17 compiler and librdkafka's headers, Debian: librdkafka-dev)
//
// Run it with librdkafka 2.6.1 or later: older ones fail at SCRAM with Kafka 4 (confluentinc/librdkafka#4895).
//
//   fleet_robot PROPERTIES FLEET ROBOT_ID ROBOT_TYPE CAMERA IMAGE STATE INSTRUCTION TTL_MS
//   fleet_robot fleet.properties north arm-7 tabletop_arm base look.jpg 0.1,0.2,0.3 "pick up the red block" 2000
//
// PROPERTIES holds librdkafka's own, one name=value a line: bootstrap.servers, and on a secure Kafka security.protocol,
// sasl.mechanism, sasl.username, sasl.password and ssl.ca.location, as `vlastream fleets add` prints them.
// Exit status: 0 actions to execute, 1 refused, 2 no answer in time, 3 an answer too late to execute, 64 usage.
//
// The few fields of schemas/vla/v1/inference.proto that are needed are written and read by hand, so that no protobuf
// library has to be there; with one, generate the messages with protoc instead.

#include <librdkafka/rdkafkacpp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using Clock = std::chrono::steady_clock;

namespace proto {

// Writes the protobuf wire format: https://protobuf.dev/programming-guides/encoding
class Writer {
 public:
  void number(int field, uint64_t value) { tag(field, 0), varint(value); }

  void text(int field, const std::string& value) {
    tag(field, 2), varint(value.size());
    bytes_ += value;
  }

  void floats(int field, const std::vector<float>& values) {
    std::string packed(values.size() * sizeof(float), '\0');
    if (!values.empty()) std::memcpy(&packed[0], values.data(), packed.size());  // little endian, as the wire is
    text(field, packed);
  }

  const std::string& bytes() const { return bytes_; }

 private:
  void tag(int field, int type) { varint(static_cast<uint64_t>(field) << 3 | type); }

  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

// Reads one message's fields in order; unknown ones are passed over by whoever calls.
class Reader {
 public:
  explicit Reader(std::string bytes) : bytes_(std::move(bytes)) {}

  bool next() {
    if (at_ >= bytes_.size()) return false;
    const uint64_t tag = varint();
    field = static_cast<int>(tag >> 3);
    switch (tag & 7) {
      case 0: number = varint(); break;
      case 1: text = take(8); break;
      case 2: text = take(varint()); break;
      case 5: text = take(4); break;
      default: throw std::runtime_error("no protobuf message");
    }
    return true;
  }

  int field = 0;
  uint64_t number = 0;
  std::string text;

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    throw std::runtime_error("no protobuf message");
  }

  std::string take(uint64_t count) {
    if (count > bytes_.size() - at_) throw std::runtime_error("a protobuf message was cut off");
    at_ += count;
    return bytes_.substr(at_ - count, count);
  }

  std::string bytes_;
  size_t at_ = 0;
};

}  // namespace proto

struct Look {
  std::string robot_id, robot_type, camera, image, instruction;
  std::vector<float> state;
  int ttl_ms = 2000;
};

std::string new_uuid() {
  std::random_device random;
  const char* digits = "0123456789abcdef";
  std::string uuid = "xxxxxxxx-xxxx-4xxx-8xxx-xxxxxxxxxxxx";
  for (char& c : uuid)
    if (c == 'x') c = digits[random() & 15];
  return uuid;
}

// An InferenceRequest.
std::string encode(const Look& look, const std::string& request_id) {
  proto::Writer image;
  image.text(1, look.camera);
  image.number(2, 1);  // IMAGE_ENCODING_JPEG
  image.text(5, look.image);
  proto::Writer request;
  request.text(1, request_id);
  request.text(2, look.robot_id);
  request.text(3, look.robot_type);
  request.text(5, look.instruction);
  request.text(6, image.bytes());
  request.floats(7, look.state);
  request.number(11, static_cast<uint64_t>(look.ttl_ms));
  return request.bytes();
}

struct Answer {
  uint64_t horizon = 0, dim = 0;
  std::vector<float> values;  // horizon * dim, row-major, in the units of the embodiment card
  std::string refusal;        // a code of schemas/codes.py; empty: actions
  std::string detail;
};

Answer decode(const std::string& outcome_bytes) {
  Answer answer;
  for (proto::Reader outcome(outcome_bytes); outcome.next();) {
    if (outcome.field == 3) {  // ActionChunk
      for (proto::Reader chunk(outcome.text); chunk.next();) {
        if (chunk.field != 1) continue;  // ActionMatrix
        for (proto::Reader matrix(chunk.text); matrix.next();) {
          if (matrix.field == 1) answer.horizon = matrix.number;
          if (matrix.field == 2) answer.dim = matrix.number;
          if (matrix.field == 3) {
            answer.values.resize(matrix.text.size() / sizeof(float));
            std::memcpy(answer.values.data(), matrix.text.data(), answer.values.size() * sizeof(float));
          }
        }
      }
    } else if (outcome.field == 4) {  // Rejection
      for (proto::Reader rejection(outcome.text); rejection.next();) {
        if (rejection.field == 2) answer.refusal = rejection.text;
        if (rejection.field != 4) continue;  // Violation
        for (proto::Reader violation(rejection.text); violation.next();)
          if (violation.field == 3) answer.detail = violation.text;
      }
    }
  }
  if (answer.refusal.empty() && (answer.values.empty() || answer.values.size() != answer.horizon * answer.dim))
    throw std::runtime_error("the answer holds neither actions nor a refusal");
  return answer;
}

std::unique_ptr<RdKafka::Conf> configuration(const std::string& path, const std::string& fleet) {
  std::unique_ptr<RdKafka::Conf> conf(RdKafka::Conf::create(RdKafka::Conf::CONF_GLOBAL));
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::string problem;
  const auto set = [&](const std::string& name, const std::string& value) {
    if (conf->set(name, value, problem) != RdKafka::Conf::CONF_OK) throw std::runtime_error(problem);
  };
  for (std::string line; std::getline(file, line);) {
    const size_t equals = line.find('=');
    if (!line.empty() && line[0] != '#' && equals != std::string::npos)
      set(line.substr(0, equals), line.substr(equals + 1));
  }
  set("enable.idempotence", "true");
  // As Java and every other client here: all of them place a robot in the same partition.
  set("partitioner", "murmur2_random");
  set("linger.ms", "0");
  set("group.id", "fleet." + fleet + ".robots");  // no group is joined, but librdkafka wants a name
  set("enable.auto.commit", "false");
  return conf;
}

class Delivery : public RdKafka::DeliveryReportCb {
 public:
  void dr_cb(RdKafka::Message& message) override {
    if (message.err()) problem = message.errstr();
    partition = message.err() ? -1 : message.partition();
    reported = true;
  }
  bool reported = false;
  int partition = -1;
  std::string problem;
};

std::string header(const RdKafka::Message& message, const std::string& name) {
  const RdKafka::Headers* headers = const_cast<RdKafka::Message&>(message).headers();
  if (headers == nullptr) return "";
  const RdKafka::Headers::Header found = headers->get_last(name);
  return found.err() ? "" : std::string(static_cast<const char*>(found.value()), found.value_size());
}

int64_t left_ms(Clock::time_point end) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
}

// The exit status.
int ask(const std::string& properties, const std::string& fleet, const Look& look) {
  const std::string requests = "vla.requests." + fleet + ".v1", replies = "vla.replies." + fleet + ".v1";
  constexpr int kConnectMs = 15000;
  auto conf = configuration(properties, fleet);
  Delivery delivery;
  std::string problem;
  conf->set("dr_cb", &delivery, problem);
  std::unique_ptr<RdKafka::Producer> producer(RdKafka::Producer::create(conf.get(), problem));
  if (!producer) throw std::runtime_error(problem);
  auto reading = configuration(properties, fleet);
  std::unique_ptr<RdKafka::KafkaConsumer> consumer(RdKafka::KafkaConsumer::create(reading.get(), problem));
  if (!consumer) throw std::runtime_error(problem);

  // Where the replies end now, before anything is asked: so no answer is missed.
  std::unique_ptr<RdKafka::Topic> topic(RdKafka::Topic::create(consumer.get(), replies, nullptr, problem));
  RdKafka::Metadata* described = nullptr;
  RdKafka::ErrorCode error = consumer->metadata(false, topic.get(), &described, kConnectMs);
  if (error) throw std::runtime_error("Kafka does not answer: " + RdKafka::err2str(error));
  std::unique_ptr<RdKafka::Metadata> metadata(described);
  std::vector<int64_t> ends;
  for (const auto* partition : *metadata->topics()->front()->partitions()) {
    int64_t low = 0, high = 0;
    error = consumer->query_watermark_offsets(replies, partition->id(), &low, &high, kConnectMs);
    if (error) throw std::runtime_error(replies + ": " + RdKafka::err2str(error));
    ends.resize(std::max<size_t>(ends.size(), partition->id() + 1), 0);
    ends[partition->id()] = high;
  }
  if (ends.empty()) throw std::runtime_error("no topic " + replies + " for this user: was the fleet added?");

  const std::string request_id = new_uuid(), message = encode(look, request_id);
  RdKafka::Headers* headers = RdKafka::Headers::create();
  headers->add("content-type", "application/protobuf");
  headers->add("request_id", request_id);
  headers->add("correlation_id", request_id);
  // The robot's own clock, from before the request left: it never reads younger than it is.
  const Clock::time_point asked = Clock::now(), deadline = asked + std::chrono::milliseconds(look.ttl_ms);
  error = producer->produce(requests, RdKafka::Topic::PARTITION_UA, RdKafka::Producer::RK_MSG_COPY,
                            const_cast<char*>(message.data()), message.size(), look.robot_id.data(),
                            look.robot_id.size(), 0, headers, nullptr);
  if (error) {
    delete headers;
    throw std::runtime_error("the request cannot be sent: " + RdKafka::err2str(error));
  }
  while (!delivery.reported && left_ms(deadline) > 0) producer->poll(5);
  if (!delivery.problem.empty()) throw std::runtime_error("the request did not reach Kafka: " + delivery.problem);
  if (!delivery.reported) return std::cout << "no answer: the request did not reach Kafka in time\n", 2;

  // The answer comes in the partition of the same number.
  const int partition = delivery.partition;
  std::unique_ptr<RdKafka::TopicPartition> place(
      RdKafka::TopicPartition::create(replies, partition, ends.at(static_cast<size_t>(partition))));
  consumer->assign({place.get()});
  while (left_ms(deadline) > 0) {
    const int wait_ms = static_cast<int>(std::min<int64_t>(left_ms(deadline), 100));
    std::unique_ptr<RdKafka::Message> reply(consumer->consume(wait_ms));
    // Other robots may have this partition too.
    if (!reply || reply->err() || header(*reply, "correlation_id") != request_id) continue;
    const Answer answer = decode(std::string(static_cast<const char*>(reply->payload()), reply->len()));
    const bool replayed = header(*reply, "replayed") == "true";
    if (!answer.refusal.empty()) return std::cout << "refused: " << answer.refusal << ": " << answer.detail << "\n", 1;
    // An old answer to an old look: the world has moved on, whatever these actions say.
    if (header(*reply, "expired") == "true" || left_ms(deadline) <= 0) return std::cout << "expired: hold\n", 3;
    std::cout << "actions " << answer.horizon << "x" << answer.dim << (replayed ? " replayed" : "") << " after "
              << look.ttl_ms - left_ms(deadline) << " ms:";
    for (uint64_t i = 0; i < answer.dim; ++i) std::cout << ' ' << answer.values[i];
    return std::cout << "\n", 0;
  }
  return std::cout << "no answer within " << look.ttl_ms << " ms: hold\n", 2;
}

int main(int argc, char** argv) {
  if (argc != 10) {
    std::cerr << "usage: fleet_robot PROPERTIES FLEET ROBOT_ID ROBOT_TYPE CAMERA IMAGE STATE INSTRUCTION TTL_MS\n";
    return 64;
  }
  try {
    Look look;
    look.robot_id = argv[3], look.robot_type = argv[4], look.camera = argv[5], look.instruction = argv[8];
    std::ifstream image(argv[6], std::ios::binary);
    look.image.assign(std::istreambuf_iterator<char>(image), {});
    if (look.image.empty()) throw std::runtime_error(std::string("cannot read ") + argv[6]);
    std::stringstream numbers(argv[7]);
    for (std::string number; std::getline(numbers, number, ',');) look.state.push_back(std::stof(number));
    look.ttl_ms = std::stoi(argv[9]);
    return ask(argv[1], argv[2], look);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
}
