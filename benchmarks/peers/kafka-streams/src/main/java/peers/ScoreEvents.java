package peers;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.time.Duration;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.api.FixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

/** Kafka Streams, exactly once: one event, one step; states in RocksDB with a changelog topic. */
public final class ScoreEvents {
  private static final String STORE = "states";
  private static final String[] FEATURES = {"amount", "f1", "f2", "f3", "f4", "f5", "f6", "f7"};

  private ScoreEvents() {}

  private static final class Scorer implements FixedKeyProcessor<String, byte[], byte[]> {
    private final ObjectMapper json = new ObjectMapper();
    private final FloatBuffer x = floats(FEATURES.length);
    private FixedKeyProcessorContext<String, byte[]> context;
    private KeyValueStore<String, byte[]> states;
    private OrtEnvironment environment;
    private OrtSession session;
    private ByteBuffer row; // direct memory, which ONNX Runtime reads without a copy
    private int size;

    @Override
    public void init(FixedKeyProcessorContext<String, byte[]> context) {
      this.context = context;
      states = context.getStateStore(STORE);
      try {
        environment = OrtEnvironment.getEnvironment();
        OrtSession.SessionOptions options = new OrtSession.SessionOptions();
        options.setIntraOpNumThreads(1);
        session = environment.createSession(System.getenv("MODEL"), options);
        size = (int) ((TensorInfo) session.getInputInfo().get("state").getInfo()).getShape()[1];
      } catch (OrtException error) {
        throw new IllegalStateException(error);
      }
      row = ByteBuffer.allocateDirect(Float.BYTES * size).order(ByteOrder.nativeOrder());
    }

    @Override
    public void process(FixedKeyRecord<String, byte[]> event) {
      try {
        JsonNode fields = json.readTree(event.value());
        for (int i = 0; i < FEATURES.length; i++) {
          x.put(i, fields.get(FEATURES[i]).floatValue());
        }
        byte[] before = states.get(event.key());
        row.clear();
        row.put(before == null ? new byte[Float.BYTES * size] : before);
        row.flip();
        byte[] after = new byte[Float.BYTES * size];
        float score;
        try (OnnxTensor input = OnnxTensor.createTensor(environment, x, new long[] {1, FEATURES.length});
            OnnxTensor state = OnnxTensor.createTensor(environment, row.asFloatBuffer(), new long[] {1, size});
            OrtSession.Result out =
                session.run(Map.of("x", input, "state", state), Set.of("state_out", "score"))) {
          score = ((OnnxTensor) out.get("score").orElseThrow()).getFloatBuffer().get(0);
          ((OnnxTensor) out.get("state_out").orElseThrow()).getByteBuffer().get(after);
        }
        states.put(event.key(), after);
        Map<String, Object> answer =
            Map.of("card_id", fields.get("card_id").asText(), "ts", fields.get("ts").asText(), "score", score);
        context.forward(event.withValue(json.writeValueAsBytes(answer)));
      } catch (OrtException | IOException error) {
        throw new IllegalStateException(error);
      }
    }

    @Override
    public void close() {
      try {
        session.close();
      } catch (OrtException error) {
        throw new IllegalStateException(error);
      }
    }

    private static FloatBuffer floats(int count) {
      return ByteBuffer.allocateDirect(Float.BYTES * count).order(ByteOrder.nativeOrder()).asFloatBuffer();
    }
  }

  public static void main(String[] arguments) throws InterruptedException {
    Properties settings = new Properties();
    settings.put(StreamsConfig.APPLICATION_ID_CONFIG, System.getenv("GROUP"));
    settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, System.getenv("BOOTSTRAP"));
    settings.put(StreamsConfig.STATE_DIR_CONFIG, System.getenv("STATE_DIR"));
    settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
    settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
    settings.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
    StreamsBuilder builder = new StreamsBuilder();
    builder.addStateStore(
        Stores.keyValueStoreBuilder(
                Stores.persistentKeyValueStore(STORE), Serdes.String(), Serdes.ByteArray())
            .withCachingEnabled());
    builder.stream(System.getenv("INPUT"), Consumed.with(Serdes.String(), Serdes.ByteArray()))
        .processValues(Scorer::new, STORE)
        .to(System.getenv("OUTPUT"), Produced.with(Serdes.String(), Serdes.ByteArray()));
    KafkaStreams streams = new KafkaStreams(builder.build(), settings);
    CountDownLatch ended = new CountDownLatch(1);
    streams.setStateListener(
        (now, before) -> {
          if (now == KafkaStreams.State.ERROR || now == KafkaStreams.State.NOT_RUNNING) {
            ended.countDown();
          }
        });
    Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(10))));
    streams.start();
    ended.await();
  }
}
