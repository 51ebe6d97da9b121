/* load.h - what the load generators share: clock, latency histogram, source addresses, CoAP messages,
 * the server's CPU time and memory, and the output format. */
#ifndef LOAD_H
#define LOAD_H
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_DATAGRAM 1500
#define SECOND 1000000000ull
#define MILLISECOND 1000000ull
#define SWEEP_INTERVAL (50 * MILLISECOND)

enum { EXIT_NOTHING = 1, EXIT_USAGE = 2 }; /* exit status: 0 something was measured, 1 nothing was, 2 usage */

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + t.tv_nsec;
}

static inline void die(const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(EXIT_USAGE);
}

static inline double parse_number(const char *option, const char *text, double low, double high) {
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !(v >= low && v <= high))
        die("%s: '%s' is not a number from %g to %g", option, text, low, high);
    return v;
}

static inline void *allocate(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    if (!p) die("out of memory");
    return p;
}

/* ---- latency histogram: buckets 1/64 of a power of two wide (1.6 %), unit 0.1 us ---- */
#define BUCKETS (60 * 64)
struct histogram {
    uint64_t bucket[BUCKETS], count, max_ns;
    double sum_ns;
};

static inline void histogram_add(struct histogram *h, uint64_t ns) {
    uint64_t v = ns / 100;
    int i = v;
    if (v >= 64) {
        int e = 63 - __builtin_clzll(v);
        i = (e - 5) * 64 + ((v >> (e - 6)) & 63);
    }
    h->bucket[i < BUCKETS ? i : BUCKETS - 1]++;
    h->count++;
    h->sum_ns += ns;
    if (ns > h->max_ns) h->max_ns = ns;
}

static inline double histogram_us(const struct histogram *h, double quantile) {
    uint64_t want = h->count * quantile, seen = 0;
    for (int i = 0; i < BUCKETS; i++)
        if ((seen += h->bucket[i]) > want) {
            uint64_t v = i;
            if (i >= 64) {
                int e = i / 64 + 5;
                v = (1ull << e) + ((uint64_t)(i & 63) << (e - 6));
            }
            return v / 10.0;
        }
    return 0;
}

/* ---- source addresses: -b ADDRESS (one for all) or -b ADDRESS/LENGTH (number index gets its own, in order) ---- */
struct source {
    int set;
    uint32_t network, start, usable;
};

static inline void source_parse(struct source *s, const char *text) {
    char copy[64], *slash;
    struct in_addr a;
    snprintf(copy, sizeof copy, "%s", text);
    int length = 32;
    if ((slash = strchr(copy, '/'))) {
        *slash = 0;
        length = parse_number("-b", slash + 1, 1, 32);
    }
    if (inet_pton(AF_INET, copy, &a) != 1 || length == 31)
        die("-b: '%s' is neither an IPv4 address nor a range such as 127.0.0.0/8", text);
    uint32_t address = ntohl(a.s_addr);
    s->set = 1;
    if (length == 32) {
        s->network = address - 1;
        s->start = 0;
        s->usable = 1;
        return;
    }
    s->network = address & (0xffffffffu << (32 - length));
    s->usable = (uint32_t)((1ull << (32 - length)) - 2);
    s->start = address == s->network ? 0 : address - s->network - 1;
}

static inline struct sockaddr_in source_address(const struct source *s, uint64_t index) {
    struct sockaddr_in sa = {.sin_family = AF_INET};
    sa.sin_addr.s_addr = htonl(s->set ? s->network + 1 + (uint32_t)((s->start + index) % s->usable) : INADDR_ANY);
    return sa;
}

static inline const char *source_text(const struct source *s, uint64_t index) {
    static char text[INET_ADDRSTRLEN];
    struct sockaddr_in sa = source_address(s, index);
    return s->set ? inet_ntop(AF_INET, &sa.sin_addr, text, sizeof text) : "";
}

static inline struct addrinfo *resolve(const char *host, const char *port) {
    struct addrinfo hint = {.ai_socktype = SOCK_DGRAM}, *ai;
    int r = getaddrinfo(host, port, &hint, &ai);
    if (r) die("%s port %s: %s", host, port, gai_strerror(r));
    return ai;
}

/* A non-blocking UDP socket with source address number index, connected to the server; -1 and errno if that fails. */
static inline int open_socket(const struct addrinfo *server, const struct source *s, uint64_t index) {
    int fd = socket(server->ai_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    struct sockaddr_in sa = source_address(s, index);
    if ((s->set && bind(fd, (void *)&sa, sizeof sa)) || connect(fd, server->ai_addr, server->ai_addrlen)) {
        int e = errno;
        close(fd);
        errno = e;
        return -1;
    }
    return fd;
}

static inline void raise_file_limit(uint64_t needed) {
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r);
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
    if (needed + 16 > r.rlim_cur)
        die("-n needs %llu open files, the limit is %llu (ulimit -n)", (unsigned long long)needed + 16,
            (unsigned long long)r.rlim_cur);
}

/* ---- CoAP ---- */
enum { CON, NON, ACK, RST };

struct request { /* what is the same in every request: options and payload */
    uint8_t method, bytes[2048];
    size_t length;
    int last_option;
};

static inline size_t coap_nibble(uint8_t **p, size_t v) {
    if (v < 13) return v;
    if (v < 269) {
        *(*p)++ = v - 13;
        return 13;
    }
    *(*p)++ = (v - 269) >> 8;
    *(*p)++ = (v - 269) & 255;
    return 14;
}

static inline void request_option(struct request *r, int number, const void *value, size_t length) {
    if (r->length + length + 5 > sizeof r->bytes) die("the options of the request are too long");
    uint8_t *head = r->bytes + r->length, *p = head + 1;
    size_t delta = coap_nibble(&p, number - r->last_option), size = coap_nibble(&p, length);
    *head = delta << 4 | size;
    memcpy(p, value, length);
    r->length = p + length - r->bytes;
    r->last_option = number;
}

static inline void request_split(struct request *r, int number, const char *text, const char *separator) {
    char copy[1024], *rest = copy, *part;
    if (strlen(text) >= sizeof copy) die("'%.20s...' is too long", text);
    strcpy(copy, text);
    while ((part = strsep(&rest, separator)))
        if (*part) request_option(r, number, part, strlen(part));
}

static inline void request_uint(struct request *r, int number, unsigned v) {
    uint8_t b[2] = {v >> 8, v};
    int skip = v == 0 ? 2 : v < 256 ? 1 : 0;
    request_option(r, number, b + skip, 2 - skip);
}

/* format and no_response: -1 leaves the option out. */
static inline void request_build(struct request *r, int method, const char *path, int format, const char *query,
                                 int no_response, int payload) {
    static const char text[] = "{\"temperature\":21.5,\"humidity\":40,\"battery\":3.61,\"sequence\":0123456789}";
    memset(r, 0, sizeof *r);
    r->method = method;
    request_split(r, 11, path, "/");
    if (format >= 0) request_uint(r, 12, format);
    request_split(r, 15, query, "&");
    if (no_response >= 0) request_uint(r, 258, no_response);
    if (r->length + payload + 1 + 12 > MAX_DATAGRAM - 100) die("options and payload do not fit one datagram");
    if (payload) r->bytes[r->length++] = 0xff;
    for (int i = 0; i < payload; i++) r->bytes[r->length++] = text[i % (sizeof text - 1)];
}

/* The token is the slot number and a generation, 4 or 2 bytes each, so that a late answer is told from the awaited one. */
static inline size_t message_build(uint8_t *b, const struct request *r, int type, int token_length, uint16_t mid,
                                   uint32_t slot, uint32_t generation) {
    uint8_t *p = b;
    *p++ = 0x40 | type << 4 | token_length;
    *p++ = r->method;
    *p++ = mid >> 8;
    *p++ = mid;
    for (int i = token_length / 2 - 1; i >= 0; i--) *p++ = slot >> 8 * i;
    for (int i = token_length / 2 - 1; i >= 0; i--) *p++ = generation >> 8 * i;
    memcpy(p, r->bytes, r->length);
    return p + r->length - b;
}

struct message {
    int type, token_length;
    uint8_t code;
    uint16_t mid;
    uint32_t slot, generation; /* read from the token, if its length is the expected one */
};

static inline int message_parse(struct message *m, const uint8_t *b, size_t length, int token_length) {
    if (length < 4 || b[0] >> 6 != 1) return 0;
    m->type = b[0] >> 4 & 3;
    m->token_length = b[0] & 15;
    m->code = b[1];
    m->mid = b[2] << 8 | b[3];
    m->slot = m->generation = 0;
    if (m->code == 0) return length == 4 && m->token_length == 0;
    if (m->token_length > 8 || length < 4u + m->token_length) return 0;
    if (m->token_length == token_length)
        for (int i = 0; i < token_length / 2; i++) {
            m->slot = m->slot << 8 | b[4 + i];
            m->generation = m->generation << 8 | b[4 + token_length / 2 + i];
        }
    return 1;
}

static inline void empty_message(uint8_t b[4], int type, uint16_t mid) {
    b[0] = 0x40 | type << 4;
    b[1] = 0;
    b[2] = mid >> 8;
    b[3] = mid;
}

/* How long to wait in a CoAP exchange before the next step: retransmission tries+1, or giving up. */
static inline uint64_t exchange_limit(uint64_t timeout_ns, int tries, int acknowledged, int max_retransmit) {
    return timeout_ns << (acknowledged ? max_retransmit + 1 : tries);
}

/* ---- the server: CPU time and memory of the processes named with --server-pid, all their threads included ---- */
#define MAX_PIDS 16
struct server {
    int n, pid[MAX_PIDS];
};

static inline void server_parse(struct server *s, const char *text) {
    char copy[256], *rest = copy, *part;
    snprintf(copy, sizeof copy, "%s", text);
    while ((part = strsep(&rest, ","))) {
        if (s->n == MAX_PIDS) die("--server-pid: at most %d processes", MAX_PIDS);
        s->pid[s->n++] = parse_number("--server-pid", part, 1, 4194304);
    }
}

static inline int proc_read(int pid, const char *name, char *buffer, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    size_t n = fread(buffer, 1, size - 1, f);
    fclose(f);
    buffer[n] = 0;
    return n > 0;
}

/* utime + stime in seconds; -1 if no process was named or one is gone. */
static inline double server_cpu(const struct server *s) {
    char b[1024], *p;
    unsigned long user, system;
    double sum = 0;
    for (int i = 0; i < s->n; i++) {
        if (!proc_read(s->pid[i], "stat", b, sizeof b) || !(p = strrchr(b, ')')) ||
            sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
            return -1;
        sum += (double)(user + system) / sysconf(_SC_CLK_TCK);
    }
    return s->n ? sum : -1;
}

/* Resident memory in KiB; -1 likewise. */
static inline double server_rss(const struct server *s) {
    char b[8192], *p;
    double sum = 0;
    for (int i = 0; i < s->n; i++) {
        if (!proc_read(s->pid[i], "status", b, sizeof b) || !(p = strstr(b, "\nVmRSS:"))) return -1;
        sum += strtod(p + 7, NULL);
    }
    return s->n ? sum : -1;
}

static inline void server_check(const struct server *s) {
    if (s->n && server_cpu(s) < 0) die("--server-pid: no such process");
}

static inline double own_cpu(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

/* ---- output: the same names in the same order, as lines "name value" or as one JSON object on one line ---- */
static int out_json, out_count;

static inline void out_name(const char *name) {
    if (out_json)
        printf("%s\"%s\":", out_count++ ? "," : "{", name);
    else
        printf("%-26s ", name);
}

static inline void out_quoted(const char *text) {
    putchar('"');
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            printf("\\%c", *text);
        else if ((unsigned char)*text < 32)
            printf("\\u%04x", *text);
        else
            putchar(*text);
    putchar('"');
}

static inline void out_text(const char *name, const char *value) {
    out_name(name);
    if (out_json)
        out_quoted(value);
    else
        puts(*value ? value : "-");
}

static inline void out_int(const char *name, uint64_t value) {
    out_name(name);
    printf("%llu%s", (unsigned long long)value, out_json ? "" : "\n");
}

static inline void out_float(const char *name, double value, int decimals) {
    out_name(name);
    printf("%.*f%s", decimals, value, out_json ? "" : "\n");
}

/* A figure that may be unknown: null in JSON, "-" in lines. */
static inline void out_optional(const char *name, int known, double value, int decimals) {
    if (known) {
        out_float(name, value, decimals);
        return;
    }
    out_name(name);
    fputs(out_json ? "null" : "-\n", stdout);
}

/* Named counts: an object in JSON, "name:count,name:count" in lines. */
struct counts {
    int n;
    char name[16][48];
    uint64_t count[16];
};

static inline void counts_add(struct counts *c, const char *name) {
    char clean[sizeof c->name[0]];
    int i = 0;
    snprintf(clean, sizeof clean, "%s", name);
    for (char *p = clean; *p; p++)
        if (*p == ' ' || *p == ',' || *p == ':') *p = '_';
    while (i < c->n && strcmp(c->name[i], clean)) i++;
    if (i == 16) i = 15; /* more kinds than there is room for: the last one stands for the rest */
    if (i == c->n) strcpy(c->name[c->n++], clean);
    c->count[i]++;
}

static inline void out_counts(const char *name, const struct counts *c) {
    out_name(name);
    if (out_json) putchar('{');
    for (int i = 0; i < c->n; i++) {
        if (i) putchar(',');
        if (out_json)
            out_quoted(c->name[i]);
        else
            fputs(c->name[i], stdout);
        printf(":%llu", (unsigned long long)c->count[i]);
    }
    fputs(out_json ? "}" : c->n ? "\n" : "-\n", stdout);
}

static inline void out_codes(const uint64_t codes[256]) {
    struct counts c = {0};
    for (int i = 0; i < 256; i++)
        if (codes[i] && c.n < 16) {
            snprintf(c.name[c.n], sizeof c.name[0], "%d.%02d", i >> 5, i & 31);
            c.count[c.n++] = codes[i];
        }
    out_counts("codes", &c);
}

static inline void out_latency(const char *prefix, const struct histogram *h, const char *unit, double per_us) {
    static const struct { const char *name; double quantile; } q[] = {{"p50", .5}, {"p90", .9}, {"p99", .99}};
    char name[48];
    int decimals = per_us < 1 ? 3 : 1;
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%s%s_%s", prefix, q[i].name, unit);
        out_optional(name, h->count > 0, histogram_us(h, q[i].quantile) * per_us, decimals);
    }
    snprintf(name, sizeof name, "%smax_%s", prefix, unit);
    out_optional(name, h->count > 0, h->max_ns / 1e3 * per_us, decimals);
    snprintf(name, sizeof name, "%smean_%s", prefix, unit);
    out_optional(name, h->count > 0, h->count ? h->sum_ns / h->count / 1e3 * per_us : 0, decimals);
}

/* What the server spent on `done` things during `seconds`. */
static inline void out_server(double cpu_before, double cpu_after, double seconds, uint64_t done, double rss) {
    double cpu = cpu_after - cpu_before;
    int known = cpu_before >= 0 && cpu_after >= 0;
    out_optional("server_cpu_s", known, cpu, 2);
    out_optional("server_cpu_pct", known && seconds > 0, seconds > 0 ? 100 * cpu / seconds : 0, 1);
    out_optional("per_cpu_second", known && cpu > 0, cpu > 0 ? done / cpu : 0, 0);
    out_optional("server_rss_kib", rss >= 0, rss, 0);
}

static inline void out_end(void) {
    if (out_json) puts("}");
    fflush(stdout);
}

#endif
