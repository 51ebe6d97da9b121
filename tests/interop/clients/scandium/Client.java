import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

import org.eclipse.californium.elements.AddressEndpointContext;
import org.eclipse.californium.elements.EndpointContext;
import org.eclipse.californium.elements.MessageCallback;
import org.eclipse.californium.elements.RawData;
import org.eclipse.californium.elements.config.Configuration;
import org.eclipse.californium.scandium.DTLSConnector;
import org.eclipse.californium.scandium.config.DtlsConfig;
import org.eclipse.californium.scandium.config.DtlsConnectorConfig;
import org.eclipse.californium.scandium.dtls.cipher.CipherSuite;
import org.eclipse.californium.scandium.dtls.pskstore.AdvancedSinglePskStore;

/**
 * A DTLS client on Californium's Scandium: POSTs to "/" over one association and prints the code of every answer, or
 * "silence".
 *
 * <pre>Client HOST PORT IDENTITY KEY SUITE CID_BYTES PAYLOAD...</pre>
 *
 * SUITE is Scandium's name of a cipher suite, or "any". CID_BYTES is how long a Connection ID it wants of its own: -1, it
 * asks for none; 0, it takes one and wants none. Between two payloads it waits for a line on stdin. A request is repeated
 * after 250 ms, 500 ms, and so on.
 */
public final class Client {
    private static final int TRIES = 5;
    private static final int FIRST_TIMEOUT_MS = 250;

    /** Passes the failure of a handshake on to who waits for an answer. */
    private static final class Failure implements MessageCallback {
        private volatile Throwable cause;

        @Override
        public void onConnecting() {
        }

        @Override
        public void onDtlsRetransmission(int flight) {
        }

        @Override
        public void onContextEstablished(EndpointContext context) {
        }

        @Override
        public void onSent() {
        }

        @Override
        public void onError(Throwable error) {
            cause = error;
        }
    }

    private static String ask(DTLSConnector connector, LinkedBlockingQueue<byte[]> answers, InetSocketAddress to, int id,
            String payload) throws Exception {
        byte[] text = payload.getBytes(StandardCharsets.UTF_8);
        byte[] request = Arrays.copyOf(new byte[] {0x42, 0x02, 0x43, (byte) id, 's', (byte) id, (byte) 0xff}, 7 + text.length);
        System.arraycopy(text, 0, request, 7, text.length);
        long timeout = FIRST_TIMEOUT_MS;
        for (int tries = 0; tries < TRIES; tries++) {
            Failure failure = new Failure();
            connector.send(RawData.outbound(request, new AddressEndpointContext(to), failure, false));
            byte[] answer;
            while ((answer = answers.poll(timeout, TimeUnit.MILLISECONDS)) != null) {
                if (answer.length >= 6 && Arrays.equals(Arrays.copyOfRange(answer, 2, 6), Arrays.copyOfRange(request, 2, 6))) {
                    return String.format("%d.%02d", (answer[1] & 0xff) >> 5, answer[1] & 31);
                }
            }
            if (failure.cause != null) {
                throw new IllegalStateException(failure.cause);
            }
            timeout *= 2;
        }
        return "silence";
    }

    public static void main(String[] arguments) throws Exception {
        InetSocketAddress to = new InetSocketAddress(InetAddress.getByName(arguments[0]), Integer.parseInt(arguments[1]));
        int connectionIdBytes = Integer.parseInt(arguments[5]);
        DtlsConfig.register();
        Configuration configuration = new Configuration();
        configuration.set(DtlsConfig.DTLS_ROLE, DtlsConfig.DtlsRole.CLIENT_ONLY);
        configuration.set(DtlsConfig.DTLS_CONNECTION_ID_LENGTH, connectionIdBytes < 0 ? null : connectionIdBytes);
        configuration.set(DtlsConfig.DTLS_RECOMMENDED_CIPHER_SUITES_ONLY, false);
        configuration.set(DtlsConfig.DTLS_RETRANSMISSION_TIMEOUT, 250, TimeUnit.MILLISECONDS);
        configuration.set(DtlsConfig.DTLS_RECEIVER_THREAD_COUNT, 1);
        configuration.set(DtlsConfig.DTLS_CONNECTOR_THREAD_COUNT, 1);
        if (!arguments[4].equals("any")) {
            configuration.setAsList(DtlsConfig.DTLS_CIPHER_SUITES, CipherSuite.getTypeByName(arguments[4]));
        }
        DTLSConnector connector = new DTLSConnector(DtlsConnectorConfig.builder(configuration)
                .setAdvancedPskStore(new AdvancedSinglePskStore(arguments[2], arguments[3].getBytes(StandardCharsets.UTF_8)))
                .build());
        LinkedBlockingQueue<byte[]> answers = new LinkedBlockingQueue<>();
        connector.setRawDataReceiver(data -> answers.add(data.getBytes()));
        connector.start();
        try {
            for (int number = 6; number < arguments.length; number++) {
                if (number > 6) {
                    int read;
                    do {
                        read = System.in.read();
                    } while (read != '\n' && read != -1);
                }
                System.out.println(ask(connector, answers, to, number - 5, arguments[number]));
            }
        } catch (IllegalStateException refused) {
            System.err.println(refused.getMessage());
            System.exit(1);
        }
        connector.close(to);
        connector.destroy();
        System.exit(0);
    }
}
