/* A DTLS client on wolfSSL: POSTs to "/" over one association and prints the code of every answer.
 *
 *     wolfssl_client ADDRESS PORT IDENTITY KEY SUITE PAYLOAD...
 *
 * SUITE is wolfSSL's name for it, or "any".  Ends with 0 when every request was answered.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <wolfssl/options.h>

#include <wolfssl/ssl.h>

static const char *identity, *key;

static unsigned give_key(WOLFSSL *ssl, const char *hint, char *name, unsigned name_size, unsigned char *secret,
                         unsigned secret_size)
{
    (void)ssl, (void)hint;
    if (strlen(identity) >= name_size || strlen(key) > secret_size)
        return 0;
    strcpy(name, identity);
    memcpy(secret, key, strlen(key));
    return (unsigned)strlen(key);
}

static void check(const char *what, WOLFSSL *ssl, int fine)
{
    if (!fine) {
        char text[WOLFSSL_MAX_ERROR_SZ] = "";
        if (ssl)
            wolfSSL_ERR_error_string((unsigned long)wolfSSL_get_error(ssl, 0), text);
        fprintf(stderr, "%s: %s\n", what, text);
        exit(1);
    }
}

static int ask(WOLFSSL *ssl, unsigned char id, const char *payload)
{
    unsigned char message[1024] = {0x42, 0x02, 0x51, id, 'w', id, 0xff}, answer[2048];
    size_t size = strlen(payload);
    memcpy(message + 7, payload, size);
    check("write", ssl, wolfSSL_write(ssl, message, (int)size + 7) > 0);
    for (;;) {
        int got = wolfSSL_read(ssl, answer, sizeof answer);
        check("read", ssl, got > 0);
        if (got >= 6 && !memcmp(answer + 2, message + 2, 4))
            return answer[1];
    }
}

int main(int count, char **arguments)
{
    if (count < 7) {
        puts(wolfSSL_lib_version());
        return count > 1;
    }
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(arguments[2]))};
    int way = socket(AF_INET, SOCK_DGRAM, 0);
    identity = arguments[3];
    key = arguments[4];
    check("address", NULL, inet_pton(AF_INET, arguments[1], &server.sin_addr) == 1);
    check("connect", NULL, connect(way, (struct sockaddr *)&server, sizeof server) == 0);
    wolfSSL_Init();
    WOLFSSL_CTX *context = wolfSSL_CTX_new(wolfDTLSv1_2_client_method());
    check("context", NULL, context != NULL);
    wolfSSL_CTX_set_psk_client_callback(context, give_key);
    if (strcmp(arguments[5], "any"))
        check("suite", NULL, wolfSSL_CTX_set_cipher_list(context, arguments[5]) == WOLFSSL_SUCCESS);
    WOLFSSL *ssl = wolfSSL_new(context);
    check("new", NULL, ssl != NULL);
    wolfSSL_dtls_set_peer(ssl, &server, sizeof server);
    wolfSSL_set_fd(ssl, way);
    check("handshake", ssl, wolfSSL_connect(ssl) == WOLFSSL_SUCCESS);
    for (int number = 6; number < count; number++) {
        int code = ask(ssl, (unsigned char)number, arguments[number]);
        printf("%d.%02d\n", code >> 5, code & 31);
    }
    wolfSSL_shutdown(ssl);
    return 0;
}
