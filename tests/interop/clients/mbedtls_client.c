/* A DTLS client on mbedTLS: POSTs to "/" over one association and prints the code of every answer, or "silence".
 *
 *     mbedtls_client HOST PORT IDENTITY KEY SUITE FIRST_TIMEOUT_MS TRIES CID_BYTES PAYLOAD...
 *
 * SUITE is mbedTLS's name for it, or "any".  Flights are repeated after FIRST_TIMEOUT_MS, doubling up to 256 times that;
 * a request is repeated likewise, up to TRIES times, with the same Message ID.  CID_BYTES is how long a Connection ID it
 * wants of its own: -1, it asks for none; 0, it takes one and wants none (mbedTLS 3).  Between two payloads it waits for a
 * line on stdin.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/error.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>
#include <mbedtls/timing.h>
#include <mbedtls/version.h>

#if MBEDTLS_VERSION_MAJOR >= 3
#include <psa/crypto.h>
#endif

#define LONGEST_TIMEOUT_MS 1600 /* between two tries of a request */

static void check(const char *what, int result)
{
    if (result < 0) {
        char text[128];
        mbedtls_strerror(result, text, sizeof text);
        fprintf(stderr, "%s: %s (-0x%04x)\n", what, text, (unsigned)-result);
        exit(1);
    }
}

static size_t request(unsigned char *out, unsigned id, const char *payload)
{
    const unsigned char header[] = {0x42, 0x02, id >> 8, id & 0xff, 'm', id & 0xff, 0xff};
    memcpy(out, header, sizeof header);
    memcpy(out + sizeof header, payload, strlen(payload));
    return sizeof header + strlen(payload);
}

/* Sends one request until it is answered; returns the code, -1 if it was not. */
static int ask(mbedtls_ssl_context *ssl, mbedtls_ssl_config *config, unsigned id, const char *payload, uint32_t timeout,
               int most)
{
    unsigned char out[1024], in[2048];
    size_t size = request(out, id, payload);
    for (int tries = 0; tries < most; tries++) {
        check("write", mbedtls_ssl_write(ssl, out, size));
        mbedtls_ssl_conf_read_timeout(config, timeout);
        int got;
        while ((got = mbedtls_ssl_read(ssl, in, sizeof in)) >= 0 || got == MBEDTLS_ERR_SSL_WANT_READ)
            if (got >= 6 && !memcmp(in + 2, out + 2, 4))
                return in[1];
        if (got != MBEDTLS_ERR_SSL_TIMEOUT)
            check("read", got);
        timeout = timeout < LONGEST_TIMEOUT_MS ? 2 * timeout : timeout;
    }
    return -1;
}

/* Asks for Connection IDs (RFC 9146), and for one of so many bytes in records to us. */
static void want_connection_id(mbedtls_ssl_context *ssl, mbedtls_ssl_config *config, int size)
{
#if MBEDTLS_VERSION_MAJOR >= 3
    const unsigned char own[] = "a connection id of the client";
    check("length of CIDs", mbedtls_ssl_conf_cid(config, (size_t)size, MBEDTLS_SSL_UNEXPECTED_CID_IGNORE));
    check("CID", mbedtls_ssl_set_cid(ssl, MBEDTLS_SSL_CID_ENABLED, own, (size_t)size));
#else
    (void)ssl, (void)config, (void)size;
    fprintf(stderr, "this mbedTLS has no Connection IDs as RFC 9146 has them\n");
    exit(1);
#endif
}

int main(int count, char **arguments)
{
    if (count < 10) {
        puts(MBEDTLS_VERSION_STRING);
        return count > 1;
    }
    const char *host = arguments[1], *port = arguments[2], *identity = arguments[3], *key = arguments[4];
    uint32_t timeout = (uint32_t)atoi(arguments[6]);
    int most = atoi(arguments[7]), cid_bytes = atoi(arguments[8]);
    mbedtls_net_context net;
    mbedtls_entropy_context entropy;
    mbedtls_ctr_drbg_context random;
    mbedtls_ssl_context ssl;
    mbedtls_ssl_config config;
    mbedtls_timing_delay_context timer;
    int suites[2] = {mbedtls_ssl_get_ciphersuite_id(arguments[5]), 0};

#if MBEDTLS_VERSION_MAJOR >= 3
    check("PSA", psa_crypto_init() == PSA_SUCCESS ? 0 : -1);
#endif
    mbedtls_net_init(&net);
    mbedtls_entropy_init(&entropy);
    mbedtls_ctr_drbg_init(&random);
    mbedtls_ssl_init(&ssl);
    mbedtls_ssl_config_init(&config);
    check("seed", mbedtls_ctr_drbg_seed(&random, mbedtls_entropy_func, &entropy, NULL, 0));
    check("connect", mbedtls_net_connect(&net, host, port, MBEDTLS_NET_PROTO_UDP));
    check("defaults", mbedtls_ssl_config_defaults(&config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_DATAGRAM,
                                                  MBEDTLS_SSL_PRESET_DEFAULT));
    check("key", mbedtls_ssl_conf_psk(&config, (const unsigned char *)key, strlen(key),
                                      (const unsigned char *)identity, strlen(identity)));
    mbedtls_ssl_conf_rng(&config, mbedtls_ctr_drbg_random, &random);
    mbedtls_ssl_conf_handshake_timeout(&config, timeout, 256 * timeout);
    if (strcmp(arguments[5], "any"))
        mbedtls_ssl_conf_ciphersuites(&config, suites);
    check("setup", mbedtls_ssl_setup(&ssl, &config));
    if (cid_bytes >= 0)
        want_connection_id(&ssl, &config, cid_bytes);
    mbedtls_ssl_set_bio(&ssl, &net, mbedtls_net_send, NULL, mbedtls_net_recv_timeout);
    mbedtls_ssl_set_timer_cb(&ssl, &timer, mbedtls_timing_set_delay, mbedtls_timing_get_delay);
    int done;
    do
        done = mbedtls_ssl_handshake(&ssl);
    while (done == MBEDTLS_ERR_SSL_WANT_READ || done == MBEDTLS_ERR_SSL_WANT_WRITE);
    check("handshake", done);
    char line[16];
    for (int number = 9; number < count; number++) {
        if (number > 9 && !fgets(line, sizeof line, stdin))
            clearerr(stdin); /* nobody there who wants to be waited for */
        int code = ask(&ssl, &config, 0x3100u + (unsigned)number, arguments[number], timeout, most);
        if (code < 0)
            puts("silence");
        else
            printf("%d.%02d\n", code >> 5, code & 31);
        fflush(stdout);
    }
    mbedtls_ssl_close_notify(&ssl);
    return 0;
}
