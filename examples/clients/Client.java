import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.util.Arrays;
import java.util.regex.Pattern;
import java.util.stream.Collectors;

/**
 * Ask a server for recommendations by HTTP, on Java 11 and nothing else.
 *
 * <pre>java Client.java http://127.0.0.1:8000 sku-00001 sku-00002</pre>
 *
 * A service would read and write the JSON with its own library.
 */
public class Client {
    private static final Pattern DATA = Pattern.compile("\"data\":\\[([^]]*)]");

    public static void main(String[] arguments) throws Exception {
        String[] items = Arrays.copyOfRange(arguments, 1, arguments.length);
        // ids of a log of numbers are INT64, without the quotes
        String data = Arrays.stream(items).map(id -> '"' + id + '"').collect(Collectors.joining(","));
        String body =
                "{\"inputs\": ["
                        + "{\"name\": \"item_id\", \"shape\": [1, " + items.length + "],"
                        + " \"datatype\": \"BYTES\", \"data\": [" + data + "]},"
                        + "{\"name\": \"k\", \"shape\": [1, 1], \"datatype\": \"INT32\", \"data\": [5]}],"
                        + "\"outputs\": [{\"name\": \"item_ids\"}]}";
        HttpRequest request =
                HttpRequest.newBuilder(URI.create(arguments[0] + "/v2/models/recommender/infer"))
                        .timeout(Duration.ofSeconds(5))
                        .POST(HttpRequest.BodyPublishers.ofString(body))
                        .build();
        // one client for the whole service: it keeps its connections
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
        var match = DATA.matcher(answer.body());
        if (answer.statusCode() != 200 || !match.find()) {
            System.err.println(answer.body());
            System.exit(1);
        }
        for (String id : match.group(1).split(",")) {
            System.out.println(id.replace("\"", "").strip());
        }
    }
}
