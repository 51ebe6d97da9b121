/* A DTLS client on mbedTLS: POSTs to "/" over one association and prints the code of every answer.
 *
 *     mbedtls_client HOST PORT IDENTITY KEY SUITE FIRST_TIMEOUT_MS PAYLOAD...
 *
 * SUITE is mbedTLS's name for it, or "any".  Flights are repeated after FIRST_TIMEOUT_MS, doubling up to 256 times that;
 * a request is repeated likewise, up to 12 times, with the same Message ID.  Ends with 0 when every request was answered.
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

#define TRIES 12
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

/* Sends one request until it is answered; returns the code. */
static int ask(mbedtls_ssl_context *ssl, mbedtls_ssl_config *config, unsigned id, const char *payload, uint32_t timeout)
{
    unsigned char out[1024], in[2048];
    size_t size = request(out, id, payload);
    for (int tries = 0; tries < TRIES; tries++) {
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
    fprintf(stderr, "no answer\n");
    exit(1);
}

int main(int count, char **arguments)
{
    if (count < 8) {
        puts(MBEDTLS_VERSION_STRING);
        return count > 1;
    }
    const char *host = arguments[1], *port = arguments[2], *identity = arguments[3], *key = arguments[4];
    uint32_t timeout = (uint32_t)atoi(arguments[6]);
    mbedtls_net_context net;
    mbedtls_entropy_context entropy;
    mbedtls_ctr_drbg_context random;
    mbedtls_ssl_context ssl;
    mbedtls_ssl_config config;
    mbedtls_timing_delay_context timer;
    int suites[2] = {mbedtls_ssl_get_ciphersuite_id(arguments[5]), 0};

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
    mbedtls_ssl_set_bio(&ssl, &net, mbedtls_net_send, NULL, mbedtls_net_recv_timeout);
    mbedtls_ssl_set_timer_cb(&ssl, &timer, mbedtls_timing_set_delay, mbedtls_timing_get_delay);
    int done;
    do
        done = mbedtls_ssl_handshake(&ssl);
    while (done == MBEDTLS_ERR_SSL_WANT_READ || done == MBEDTLS_ERR_SSL_WANT_WRITE);
    check("handshake", done);
    for (int number = 7; number < count; number++) {
        int code = ask(&ssl, &config, 0x3100u + (unsigned)number, arguments[number], timeout);
        printf("%d.%02d\n", code >> 5, code & 31);
    }
    mbedtls_ssl_close_notify(&ssl);
    return 0;
}
