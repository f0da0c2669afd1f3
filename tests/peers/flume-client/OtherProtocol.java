// An Avro client whose protocol says the same as Flume's in another text, so that its hash is unknown to every server: it
// has to be asked for its protocol, and it parses the protocol that the server sends. Argument: port. Prints one line for
// each of three calls: the status, or the name of the exception and its text.

import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import org.apache.avro.Protocol;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.ipc.generic.GenericRequestor;
import org.apache.avro.ipc.netty.NettyTransceiver;

public class OtherProtocol {
  private static final String TEXT =
      "{'protocol': 'AvroSourceProtocol', 'namespace': 'org.apache.flume.source.avro', 'doc': 'another text',"
          + " 'types': [{'type': 'enum', 'name': 'Status', 'symbols': ['OK', 'FAILED', 'UNKNOWN']},"
          + " {'type': 'record', 'name': 'AvroFlumeEvent', 'fields': ["
          + "{'name': 'headers', 'type': {'type': 'map', 'values': {'type': 'string', 'avro.java.string': 'String'}}},"
          + " {'name': 'body', 'type': 'bytes'}]}],"
          + " 'messages': {'append': {'request': [{'name': 'event', 'type': 'AvroFlumeEvent'}], 'response': 'Status'},"
          + " 'appendBatch': {'request': [{'name': 'events', 'type': {'type': 'array', 'items': 'AvroFlumeEvent'}}],"
          + " 'response': 'Status'},"
          + " 'later': {'request': [], 'response': 'null'}}}";

  public static void main(String[] arguments) throws Exception {
    Protocol protocol = Protocol.parse(TEXT.replace('\'', '"'));
    InetSocketAddress server = new InetSocketAddress(InetAddress.getLoopbackAddress(), Integer.parseInt(arguments[0]));
    try (NettyTransceiver transceiver = new NettyTransceiver(server, 10_000)) {
      GenericRequestor requestor = new GenericRequestor(protocol, transceiver);
      GenericRecord single = new GenericData.Record(protocol.getMessages().get("append").getRequest());
      single.put("event", event(protocol, "one"));
      call(requestor, "append", single);
      GenericRecord none = new GenericData.Record(protocol.getMessages().get("later").getRequest());
      call(requestor, "later", none);
      GenericRecord batch = new GenericData.Record(protocol.getMessages().get("appendBatch").getRequest());
      batch.put("events", List.of(event(protocol, "two"), event(protocol, "three")));
      call(requestor, "appendBatch", batch);
    }
    System.exit(0);
  }

  private static GenericRecord event(Protocol protocol, String body) {
    GenericRecord event = new GenericData.Record(protocol.getType("AvroFlumeEvent"));
    event.put("headers", Map.of("k", body));
    event.put("body", ByteBuffer.wrap(body.getBytes(StandardCharsets.UTF_8)));
    return event;
  }

  private static void call(GenericRequestor requestor, String message, GenericRecord request) {
    try {
      System.out.println(message + ": " + requestor.request(message, request));
    } catch (Exception problem) {
      System.out.println(message + ": " + problem);
    }
  }
}
