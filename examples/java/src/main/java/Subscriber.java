import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.apache.kafka.clients.consumer.CommitFailedException;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.RebalanceInProgressException;
import org.apache.kafka.common.errors.WakeupException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * A subscriber of three derived topics that does the work of each event once,
 * also where it is killed in the middle, and where events come again.
 *
 * <pre>
 * Subscriber          reads on from where its group has come to
 * Subscriber show     what it has counted: ticket, event type, changes, the last one
 * Subscriber reset    forgets all of it and begins at the beginning again
 * </pre>
 *
 * docs/subscribing.md says why each setting is as it is. Its work is to count
 * changes: work that shows when it is done twice.
 */
public final class Subscriber {
    private static final List<String> TOPICS =
            List.of("ticket.status.changed", "ticket.priority.changed", "ticket.assigned");
    /** For so long an event is known again: as long as the pipeline itself knows one. */
    private static final long WINDOW_S = 48 * 60 * 60;
    private static final Duration FORGET_INTERVAL = Duration.ofHours(1);
    private static final Duration POLL_TIMEOUT = Duration.ofMillis(200);
    private static final Duration ANSWER_TIMEOUT = Duration.ofSeconds(10);
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final HttpClient HTTP = HttpClient.newHttpClient();

    private final Connection db;
    private long done;
    private long seenBefore;

    private Subscriber(Connection db) {
        this.db = db;
    }

    public static void main(String[] arguments) throws Exception {
        Path folder = Path.of(setting("STATE_DIR", "subscriber-state"));
        Files.createDirectories(folder);
        try (Connection db = DriverManager.getConnection("jdbc:sqlite:" + folder.resolve("subscriber.sqlite"))) {
            Subscriber subscriber = new Subscriber(db);
            subscriber.execute("CREATE TABLE IF NOT EXISTS done"
                    + " (event_id TEXT PRIMARY KEY, at_s INTEGER NOT NULL) WITHOUT ROWID");
            subscriber.execute("CREATE TABLE IF NOT EXISTS changes"
                    + " (ticket TEXT, event_type TEXT, count INTEGER NOT NULL, last TEXT NOT NULL,"
                    + " PRIMARY KEY (ticket, event_type)) WITHOUT ROWID");
            db.setAutoCommit(false);
            switch (arguments.length == 0 ? "" : arguments[0]) {
                case "" -> subscriber.follow();
                case "show" -> subscriber.show();
                case "reset" -> subscriber.reset();
                default -> throw new IllegalArgumentException(
                        arguments[0] + " is no command; there are show and reset");
            }
        }
    }

    private static String setting(String name, String otherwise) {
        return System.getenv().getOrDefault(name, otherwise);
    }

    private static KafkaConsumer<String, byte[]> consumer() {
        return new KafkaConsumer<>(
                Map.of(
                        "bootstrap.servers", setting("KAFKA_BROKERS", "localhost:9092"),
                        "group.id", setting("GROUP", "subscriber-java"),
                        // The default, read_uncommitted, shows what an aborted transaction wrote.
                        "isolation.level", "read_committed",
                        // The default commits by a timer, done or not.
                        "enable.auto.commit", false,
                        // The default, latest, loses what a new group finds there.
                        "auto.offset.reset", "earliest",
                        // After a crash its partitions are free again so much later; the default is 45 s.
                        "session.timeout.ms", 10000),
                new StringDeserializer(),
                // Bytes: what a header rules out is never decoded.
                new ByteArrayDeserializer());
    }

    private void follow() throws Exception {
        KafkaConsumer<String, byte[]> kafka = consumer();
        Thread main = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            kafka.wakeup();
            try {
                main.join();
            } catch (InterruptedException interrupted) {
                Thread.currentThread().interrupt();
            }
        }));
        try (kafka) {
            kafka.subscribe(TOPICS);
            // Not at the start: after a crash, what was not committed comes again first, however long ago that was.
            long forgetAt = System.nanoTime() + FORGET_INTERVAL.toNanos();
            while (true) {
                ConsumerRecords<String, byte[]> records = kafka.poll(POLL_TIMEOUT);
                if (!records.isEmpty()) {
                    work(records);
                    commit(kafka);
                }
                if (System.nanoTime() >= forgetAt) {
                    execute("DELETE FROM done WHERE at_s < ?", nowS() - WINDOW_S);
                    db.commit();
                    forgetAt = System.nanoTime() + FORGET_INTERVAL.toNanos();
                }
            }
        } catch (WakeupException stopped) {
            System.err.println(done + " events done, " + seenBefore + " seen before");
        }
    }

    private static void commit(KafkaConsumer<String, byte[]> kafka) {
        try {
            kafka.commitSync();
        } catch (CommitFailedException | RebalanceInProgressException moved) {
            // The group has moved on. Whatever comes again is known.
            System.err.println("commit: " + moved.getMessage());
        }
    }

    /** The work and the marks that it is done are one transaction: a crash leaves both or neither. */
    private void work(ConsumerRecords<String, byte[]> records) throws Exception {
        List<String> lines = new ArrayList<>();
        for (ConsumerRecord<String, byte[]> record : records) {
            handle(record, lines);
        }
        db.commit();
        lines.forEach(System.out::println);
    }

    private void handle(ConsumerRecord<String, byte[]> record, List<String> lines) throws Exception {
        // Headers decide without the value being parsed.
        if ("BOT".equals(header(record, "context_user_type"))) {
            return;
        }
        if (execute("INSERT OR IGNORE INTO done VALUES (?, ?)", header(record, "event_id"), nowS()) == 0) {
            seenBefore++;
            return;
        }
        String uid = record.key();
        String eventType = header(record, "event_name");
        JsonNode payload = JSON.readTree(record.value()).get("payload");
        String change = describe(payload.get("change"));
        String cut = header(record, "truncated_fields");
        JsonNode ticket = cut == null ? payload.get("ticket") : fetchTicket(uid, cut);
        execute(
                "INSERT INTO changes VALUES (?, ?, 1, ?)"
                        + " ON CONFLICT DO UPDATE SET count = count + 1, last = excluded.last",
                uid, eventType, change);
        done++;
        lines.add(String.join("  ", header(record, "event_timestamp"), uid, eventType, change,
                ticket.path("title").asText() + (cut == null ? "" : " (fetched whole)")));
    }

    private static String header(ConsumerRecord<String, byte[]> record, String name) {
        Header header = record.headers().lastHeader(name);
        return header == null ? null : new String(header.value(), StandardCharsets.UTF_8);
    }

    private static String describe(JsonNode change) {
        return change == null
                ? "announced by the platform itself"
                : side(change, "from") + " -> " + side(change, "to");
    }

    private static String side(JsonNode change, String name) {
        JsonNode reference = change.path(name);
        return reference.path("name").asText(reference.path("id").asText("nothing"));
    }

    /** The pipeline cuts texts that are too large for a record. The platform has them whole. */
    private static JsonNode fetchTicket(String uid, String fields) throws IOException, InterruptedException {
        String api = System.getenv("TICKET_API");
        if (api == null) {
            throw new IllegalStateException(
                    "ticket " + uid + " is truncated (" + fields + "): set TICKET_API to where it can be fetched");
        }
        URI uri = URI.create(api + "/" + uid);
        HttpResponse<byte[]> answer = HTTP.send(
                HttpRequest.newBuilder(uri).timeout(ANSWER_TIMEOUT).build(), HttpResponse.BodyHandlers.ofByteArray());
        if (answer.statusCode() != 200) {
            throw new IOException(uri + " answers " + answer.statusCode());
        }
        return JSON.readTree(answer.body());
    }

    private static long nowS() {
        return System.currentTimeMillis() / 1000;
    }

    private int execute(String sql, Object... values) throws SQLException {
        try (var statement = db.prepareStatement(sql)) {
            for (int i = 0; i < values.length; i++) {
                statement.setObject(i + 1, values[i]);
            }
            return statement.executeUpdate();
        }
    }

    private void show() throws SQLException {
        try (var statement = db.createStatement();
                var rows = statement.executeQuery("SELECT * FROM changes ORDER BY ticket, event_type")) {
            while (rows.next()) {
                System.out.println(String.join("\t",
                        rows.getString(1), rows.getString(2), rows.getString(3), rows.getString(4)));
            }
        }
    }

    /**
     * Offsets first: a crash before the rest leaves marks by which nothing is done twice.
     * The other way round it would leave nothing done and nothing to come.
     */
    private void reset() throws SQLException {
        try (KafkaConsumer<String, byte[]> kafka = consumer()) {
            List<TopicPartition> partitions = TOPICS.stream()
                    .flatMap(topic -> kafka.partitionsFor(topic).stream())
                    .map(found -> new TopicPartition(found.topic(), found.partition()))
                    .toList();
            // Kafka refuses this while the group has members, so nobody is working meanwhile.
            kafka.assign(partitions);
            kafka.commitSync(kafka.beginningOffsets(partitions).entrySet().stream()
                    .collect(Collectors.toMap(Map.Entry::getKey, entry -> new OffsetAndMetadata(entry.getValue()))));
        }
        execute("DELETE FROM changes");
        execute("DELETE FROM done");
        db.commit();
    }
}
