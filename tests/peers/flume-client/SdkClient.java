// A sender that uses Flume's own SDK. Arguments: port, compression (none or deflate), batch size, file of events.
//
// Reads events from the file (format: tests/common/events.rs), sends them in order, sends a failed batch again over a fresh
// connection, and prints after each acknowledged batch how many events are acknowledged by then. The last line tells how many
// batches were sent again. Ends with 1 when one batch fails for three minutes.

import java.io.BufferedInputStream;
import java.io.DataInputStream;
import java.io.EOFException;
import java.io.FileInputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.flume.Event;
import org.apache.flume.EventDeliveryException;
import org.apache.flume.FlumeException;
import org.apache.flume.api.RpcClient;
import org.apache.flume.api.RpcClientFactory;
import org.apache.flume.event.EventBuilder;

public class SdkClient {
  private static final long PATIENCE_MS = 180_000;

  private static RpcClient client;
  private static long resent;

  public static void main(String[] arguments) throws Exception {
    Properties properties = new Properties();
    properties.setProperty("client.type", "default");
    properties.setProperty("hosts", "h1");
    properties.setProperty("hosts.h1", "127.0.0.1:" + arguments[0]);
    properties.setProperty("batch-size", arguments[2]);
    properties.setProperty("connect-timeout", "20000");
    properties.setProperty("request-timeout", "20000");
    if (arguments[1].equals("deflate")) {
      properties.setProperty("compression-type", "deflate");
    }
    int batchSize = Integer.parseInt(arguments[2]);
    long acknowledged = 0;
    try (DataInputStream input = new DataInputStream(new BufferedInputStream(new FileInputStream(arguments[3]), 1 << 20))) {
      List<Event> batch = new ArrayList<>();
      boolean more = true;
      while (more) {
        Event event = read(input);
        more = event != null;
        if (more) {
          batch.add(event);
        }
        if (batch.size() == batchSize || (!more && !batch.isEmpty())) {
          send(properties, batch);
          acknowledged += batch.size();
          batch.clear();
          System.out.println("acknowledged " + acknowledged);
        }
      }
    }
    if (client != null) {
      client.close();
    }
    System.out.println("done resent " + resent);
    System.exit(0);
  }

  private static void send(Properties properties, List<Event> batch) throws InterruptedException {
    long end = System.currentTimeMillis() + PATIENCE_MS;
    boolean sent = false;
    while (true) {
      try {
        if (client == null) {
          client = RpcClientFactory.getInstance(properties);
        }
        if (sent) {
          resent++;
        }
        sent = true;
        if (batch.size() == 1) {
          client.append(batch.get(0));
        } else {
          client.appendBatch(batch);
        }
        return;
      } catch (EventDeliveryException | FlumeException problem) {
        System.out.println("failed: " + problem);
        if (client != null) {
          try {
            client.close();
          } catch (FlumeException ignored) {
            // The connection is broken already; the next round makes another one.
          }
          client = null;
        }
        if (System.currentTimeMillis() > end) {
          System.exit(1);
        }
        Thread.sleep(100);
      }
    }
  }

  private static Event read(DataInputStream input) throws Exception {
    byte[] headerBytes;
    try {
      headerBytes = blob(input.readInt(), input);
    } catch (EOFException end) {
      return null;
    }
    Map<String, String> headers = new HashMap<>();
    ByteBuffer fields = ByteBuffer.wrap(headerBytes);
    while (fields.hasRemaining()) {
      String key = text(fields);
      headers.put(key, text(fields));
    }
    return EventBuilder.withBody(blob(input.readInt(), input), headers);
  }

  private static byte[] blob(int length, DataInputStream input) throws Exception {
    byte[] bytes = new byte[length];
    input.readFully(bytes);
    return bytes;
  }

  private static String text(ByteBuffer fields) {
    byte[] bytes = new byte[fields.getInt()];
    fields.get(bytes);
    return new String(bytes, StandardCharsets.UTF_8);
  }
}
