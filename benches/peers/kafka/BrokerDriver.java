// Starts a real Kafka broker and produces to it, as often as its standard input asks.
//
// Each line on the standard input is one round: DIRECTORY PRODUCERS CONSUMERS BATCH SIZE SECONDS. The round starts one broker,
// which is its own controller, in that empty directory, on ports of the loopback device, stops it at the end, and answers with
// one line: `done PUT_EVENTS PUT_NS 0 PUT_NS CPU_NS COMMITS`, or `failed WHY`. Nothing takes. `flush.messages=1` makes the broker
// sync each request before it answers; without it an answer means that the events are in memory. Each producer has a connection
// and a partition of its own, because requests for one partition sync one after another, and sends a batch as one request.
//
// Broker and producers share this process, so that its CPU time is that of both and its code stays compiled between rounds; it
// ends when its standard input does.

import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedReader;
import java.io.File;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Random;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import kafka.server.KafkaConfig;
import kafka.server.KafkaRaftServer;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.utils.Time;
import org.apache.log4j.ConsoleAppender;
import org.apache.log4j.Level;
import org.apache.log4j.Logger;
import org.apache.log4j.SimpleLayout;

public class BrokerDriver {
  private static final String TOPIC = "peer";

  // What one producer did, and the time at which it had done it.
  private record Work(long commits, long end) {}

  public static void main(String[] arguments) throws Exception {
    Logger.getRootLogger().addAppender(new ConsoleAppender(new SimpleLayout(), "System.err"));
    Logger.getRootLogger().setLevel(Level.FATAL);
    BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
    System.out.println("ready");
    for (String line = input.readLine(); line != null; line = input.readLine()) {
      try {
        System.out.println("done " + round(line.trim().split(" ")));
      } catch (Exception failure) {
        System.out.println("failed " + failure.toString().replace('\n', ' '));
      }
      System.out.flush();
    }
    // Threads of a broker that failed must not keep the process.
    Runtime.getRuntime().halt(0);
  }

  private static String round(String[] words) throws Exception {
    File directory = new File(words[0]);
    int producers = Integer.parseInt(words[1]);
    if (Integer.parseInt(words[2]) > 0) {
      throw new IllegalArgumentException("nothing takes from a broker here");
    }
    int batch = Integer.parseInt(words[3]);
    int size = Integer.parseInt(words[4]);
    long nanos = (long) (Double.parseDouble(words[5]) * 1e9);

    int brokerPort;
    int controllerPort;
    try (ServerSocket broker = free();
        ServerSocket controller = free()) {
      brokerPort = broker.getLocalPort();
      controllerPort = controller.getLocalPort();
    }
    KafkaRaftServer server = new KafkaRaftServer(broker(directory, producers, brokerPort, controllerPort), Time.SYSTEM);
    server.startup();
    String address = "127.0.0.1:" + brokerPort;
    try (Admin admin = Admin.create(Map.of("bootstrap.servers", address))) {
      admin.createTopics(List.of(new NewTopic(TOPIC, Optional.of(producers), Optional.empty()))).all().get();
      return produce(address, producers, batch, size, nanos);
    } finally {
      server.shutdown();
      server.awaitShutdown();
    }
  }

  private static ServerSocket free() throws Exception {
    return new ServerSocket(0, 1, InetAddress.getLoopbackAddress());
  }

  private static KafkaConfig broker(File directory, int producers, int port, int controllerPort) throws Exception {
    File log = new File(directory, "log");
    Files.createDirectories(log.toPath());
    // What its formatter writes: the directory belongs to this node.
    String meta = "version=1\nnode.id=1\ncluster.id=AAAAAAAAAAAAAAAAAAAAAA\n";
    Files.writeString(new File(log, "meta.properties").toPath(), meta);
    return new KafkaConfig(
        Map.ofEntries(
            Map.entry("process.roles", "broker,controller"),
            Map.entry("node.id", "1"),
            Map.entry("controller.quorum.voters", "1@127.0.0.1:" + controllerPort),
            Map.entry("listeners", "PLAINTEXT://127.0.0.1:" + port + ",CONTROLLER://127.0.0.1:" + controllerPort),
            Map.entry("controller.listener.names", "CONTROLLER"),
            Map.entry("log.dirs", log.getPath()),
            Map.entry("default.replication.factor", "1"),
            Map.entry("offsets.topic.replication.factor", "1"),
            // Durable when it answers.
            Map.entry("log.flush.interval.messages", "1"),
            // One for each request that may be on its way, so that they sync beside each other.
            Map.entry("num.io.threads", Integer.toString(Math.max(8, producers)))));
  }

  private static String produce(String address, int producers, int batch, int size, long nanos) throws Exception {
    List<byte[]> bodies = new ArrayList<>();
    Random random = new Random(1);
    for (int index = 0; index < batch; index++) {
      byte[] body = new byte[size];
      random.nextBytes(body);
      bodies.add(body);
    }
    List<KafkaProducer<byte[], byte[]>> connections = new ArrayList<>();
    ExecutorService threads = Executors.newCachedThreadPool();
    try {
      for (int index = 0; index < producers; index++) {
        connections.add(connect(address, batch * (size + 100)));
        // The first request asks for the partitions as well.
        put(connections.get(index), index, bodies.subList(0, 1));
      }
      OperatingSystemMXBean system = (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
      long cpu = system.getProcessCpuTime();
      long begin = System.nanoTime();
      List<Future<Work>> started = new ArrayList<>();
      for (int index = 0; index < producers; index++) {
        int partition = index;
        started.add(threads.submit(() -> putUntil(connections.get(partition), partition, bodies, begin + nanos)));
      }
      long commits = 0;
      long end = begin;
      for (Future<Work> future : started) {
        Work work = future.get();
        commits += work.commits;
        end = Math.max(end, work.end);
      }
      cpu = system.getProcessCpuTime() - cpu;
      return commits * batch + " " + (end - begin) + " 0 " + (end - begin) + " " + cpu + " " + commits;
    } finally {
      threads.shutdownNow();
      connections.forEach(KafkaProducer::close);
    }
  }

  private static KafkaProducer<byte[], byte[]> connect(String address, int bytes) {
    Map<String, Object> settings =
        Map.of(
            "bootstrap.servers", address,
            "acks", "all",
            // A request goes when it is told to, and holds all that was sent until then.
            "linger.ms", 60_000,
            "batch.size", bytes);
    return new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer());
  }

  private static Work putUntil(KafkaProducer<byte[], byte[]> connection, int partition, List<byte[]> bodies, long until)
      throws Exception {
    long commits = 0;
    while (System.nanoTime() < until) {
      put(connection, partition, bodies);
      commits++;
    }
    return new Work(commits, System.nanoTime());
  }

  private static void put(KafkaProducer<byte[], byte[]> connection, int partition, List<byte[]> bodies) throws Exception {
    List<Future<RecordMetadata>> sent = new ArrayList<>(bodies.size());
    for (byte[] body : bodies) {
      sent.add(connection.send(new ProducerRecord<>(TOPIC, partition, null, body)));
    }
    connection.flush();
    for (Future<RecordMetadata> record : sent) {
      record.get();
    }
  }
}
