/* Preloaded into a program that sets its own list of suites: puts that of OFFER_ONE_SUITE in its place. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

typedef int (*set_list)(void *, const char *);

static int set_wanted(const char *function, void *where, const char *list)
{
    const char *wanted = getenv("OFFER_ONE_SUITE");
    set_list real = (set_list)dlsym(RTLD_NEXT, function);
    return real(where, wanted ? wanted : list);
}

int SSL_CTX_set_cipher_list(void *context, const char *list)
{
    return set_wanted("SSL_CTX_set_cipher_list", context, list);
}

int SSL_set_cipher_list(void *ssl, const char *list)
{
    return set_wanted("SSL_set_cipher_list", ssl, list);
}
