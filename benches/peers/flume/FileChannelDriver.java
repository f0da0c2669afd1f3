// Puts into and takes from the file channel of a real Flume, as often as its standard input asks.
//
// Each line on the standard input is one round: DIRECTORY PRODUCERS CONSUMERS BATCH SIZE SECONDS. The round opens a channel in
// that empty directory, with Flume's own defaults but for what would stop it (capacity, free space), and answers with one line:
// `done PUT_EVENTS PUT_NS TAKEN_EVENTS TAKE_NS CPU_NS COMMITS`, or `failed WHY`. Each commit is durable when it returns: that is
// how the channel is, whatever fsyncPerTransaction says of it. The process stays between rounds, so that its code stays compiled;
// it ends when its standard input does.

import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedReader;
import java.io.File;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.apache.flume.Context;
import org.apache.flume.Event;
import org.apache.flume.Transaction;
import org.apache.flume.channel.file.FileChannel;
import org.apache.flume.conf.Configurables;
import org.apache.flume.event.EventBuilder;

public class FileChannelDriver {
  // More than any round puts: a full channel would measure its waiting.
  private static final int CAPACITY = 8_000_000;

  // What one thread did, and the time at which it had done it.
  private record Work(long events, long commits, long end) {}

  public static void main(String[] arguments) throws Exception {
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
    // Threads of a channel that failed must not keep the process.
    System.exit(0);
  }

  private static String round(String[] words) throws Exception {
    File directory = new File(words[0]);
    int producers = Integer.parseInt(words[1]);
    int consumers = Integer.parseInt(words[2]);
    int batch = Integer.parseInt(words[3]);
    int size = Integer.parseInt(words[4]);
    long nanos = (long) (Double.parseDouble(words[5]) * 1e9);

    FileChannel channel = new FileChannel();
    channel.setName("peer");
    Context context = new Context();
    context.put("checkpointDir", new File(directory, "checkpoint").getPath());
    context.put("dataDirs", new File(directory, "data").getPath());
    context.put("capacity", Integer.toString(CAPACITY));
    context.put("transactionCapacity", Integer.toString(Math.max(10_000, batch)));
    context.put("minimumRequiredSpace", "1048576");
    context.put("checkpointOnClose", "false");
    Configurables.configure(channel, context);
    channel.start();
    if (!channel.isOpen()) {
      throw new IllegalStateException("the channel did not open; its reason is on the standard error");
    }

    List<byte[]> bodies = new ArrayList<>();
    Random random = new Random(1);
    for (int index = 0; index < batch; index++) {
      byte[] body = new byte[size];
      random.nextBytes(body);
      bodies.add(body);
    }

    OperatingSystemMXBean system = (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
    ExecutorService threads = Executors.newCachedThreadPool();
    try {
      long cpu = system.getProcessCpuTime();
      long begin = System.nanoTime();
      long until = begin + nanos;
      List<Future<Work>> putting = start(threads, producers, () -> put(channel, bodies, until));
      List<Future<Work>> taking = start(threads, consumers, () -> take(channel, batch, until));
      Work put = sum(putting, begin);
      Work taken = sum(taking, begin);
      cpu = system.getProcessCpuTime() - cpu;
      return put.events + " " + (put.end - begin) + " " + taken.events + " " + (taken.end - begin) + " " + cpu + " "
          + (put.commits + taken.commits);
    } finally {
      threads.shutdownNow();
      channel.stop();
    }
  }

  private static List<Future<Work>> start(ExecutorService threads, int count, Callable<Work> work) {
    List<Future<Work>> started = new ArrayList<>();
    for (int index = 0; index < count; index++) {
      started.add(threads.submit(work));
    }
    return started;
  }

  private static Work sum(List<Future<Work>> started, long begin) throws Exception {
    long events = 0;
    long commits = 0;
    long end = begin;
    for (Future<Work> future : started) {
      Work work = future.get();
      events += work.events;
      commits += work.commits;
      end = Math.max(end, work.end);
    }
    return new Work(events, commits, end);
  }

  private static Work put(FileChannel channel, List<byte[]> bodies, long until) {
    long commits = 0;
    while (System.nanoTime() < until) {
      Transaction transaction = channel.getTransaction();
      transaction.begin();
      try {
        for (byte[] body : bodies) {
          channel.put(EventBuilder.withBody(body));
        }
        transaction.commit();
        commits++;
      } catch (RuntimeException failure) {
        transaction.rollback();
        throw failure;
      } finally {
        transaction.close();
      }
    }
    return new Work(commits * bodies.size(), commits, System.nanoTime());
  }

  private static Work take(FileChannel channel, int batch, long until) {
    long events = 0;
    long commits = 0;
    while (System.nanoTime() < until) {
      Transaction transaction = channel.getTransaction();
      transaction.begin();
      try {
        int taken = 0;
        for (Event event = channel.take(); event != null; event = taken < batch ? channel.take() : null) {
          taken++;
        }
        transaction.commit();
        events += taken;
        commits += taken > 0 ? 1 : 0;
      } catch (RuntimeException failure) {
        transaction.rollback();
        throw failure;
      } finally {
        transaction.close();
      }
    }
    return new Work(events, commits, System.nanoTime());
  }
}
