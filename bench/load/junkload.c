/* junkload - datagrams nobody asked for, from one socket at a fixed rate; what comes back is not read.
 * Build: make -C bench/load
 */
#define _GNU_SOURCE
#include "load.h"

#define BATCH 16
#define PREPARED 4096 /* different datagrams, sent in turn */

enum { CODE_POST = 2, CODE_GET = 1, CODE_CONTENT = 0x45 };

struct kind {
    const char *name, *text;
    size_t (*build)(uint8_t *b, uint16_t mid);
};

static struct request post, get;

static size_t noise(uint8_t *b, uint16_t mid) {
    (void)mid;
    size_t length = 1 + random() % 200;
    for (size_t i = 0; i < length; i++) b[i] = random();
    return length;
}

static size_t ping(uint8_t *b, uint16_t mid) {
    empty_message(b, CON, mid);
    return 4;
}

static size_t reset(uint8_t *b, uint16_t mid) {
    empty_message(b, RST, mid);
    return 4;
}

static size_t answer(uint8_t *b, uint16_t mid) {
    struct request content = {.method = CODE_CONTENT};
    return message_build(b, &content, NON, 8, mid, random(), mid);
}

static size_t message(uint8_t *b, uint16_t mid) { return message_build(b, &post, CON, 8, mid, 0, mid); }

static size_t discovery(uint8_t *b, uint16_t mid) { return message_build(b, &get, CON, 8, mid, 0, mid); }

static size_t hello(uint8_t *b, uint16_t mid) { /* a DTLS record that says it is a ClientHello, and is none inside */
    static const uint8_t head[] = {22, 254, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100, 1, 0, 0, 88, 0, 0, 0, 0, 0, 0, 0, 88};
    memcpy(b, head, sizeof head);
    b[9] = mid >> 8, b[10] = mid;
    for (size_t i = sizeof head; i < 113; i++) b[i] = random();
    return 113;
}

static size_t record(uint8_t *b, uint16_t mid) { /* application data of an association that there is not */
    static const uint8_t head[] = {23, 254, 253, 0, 1, 0, 0, 0, 0, 0, 0, 0, 80};
    memcpy(b, head, sizeof head);
    b[9] = mid >> 8, b[10] = mid;
    for (size_t i = sizeof head; i < 93; i++) b[i] = random();
    return 93;
}

static const struct kind kinds[] = {
    {"noise", "1 to 200 random bytes", noise},
    {"ping", "empty CONs", ping},
    {"reset", "stray RSTs", reset},
    {"answer", "2.05 that nobody asked for", answer},
    {"message", "POST / with a payload", message},
    {"discovery", "GET /.well-known/core", discovery},
    {"hello", "broken DTLS ClientHellos", hello},
    {"record", "DTLS records of no association", record},
};
#define KINDS (int)(sizeof kinds / sizeof *kinds)

static void usage(int status) {
    FILE *out = status ? stderr : stdout;
    fputs("usage: junkload [options]\n"
          "  -h HOST  server, default 127.0.0.1    -p PORT  default 5683\n"
          "  -b ADDR  source address               -r RATE  datagrams per second, default 50000\n"
          "  -t SECONDS  default 10                -k KIND  default noise:\n", out);
    for (int i = 0; i < KINDS; i++) fprintf(out, "             %-10s %s\n", kinds[i].name, kinds[i].text);
    exit(status);
}

int main(int argc, char **argv) {
    const char *host = "127.0.0.1", *port = "5683";
    const struct kind *kind = kinds;
    double rate = 50000, seconds = 10;
    struct source source = {0};
    int o;
    while ((o = getopt(argc, argv, "h:p:b:r:t:k:")) != -1) switch (o) {
        case 'h': host = optarg; break;
        case 'p': port = optarg; break;
        case 'b': source_parse(&source, optarg); break;
        case 'r': rate = parse_number("-r", optarg, 1, 1e7); break;
        case 't': seconds = parse_number("-t", optarg, 0.001, 3600); break;
        case 'k':
            for (kind = kinds; kind < kinds + KINDS && strcmp(kind->name, optarg); kind++) {}
            if (kind == kinds + KINDS) usage(EXIT_USAGE);
            break;
        default: usage(EXIT_USAGE);
        }
    request_build(&post, CODE_POST, "/", -1, "t=junk", -1, 64);
    request_build(&get, CODE_GET, "/.well-known/core", -1, "", -1, 0);
    static uint8_t bytes[PREPARED][512];
    static struct iovec parts[PREPARED];
    for (int i = 0; i < PREPARED; i++) parts[i] = (struct iovec){bytes[i], kind->build(bytes[i], i)};
    int fd = open_socket(resolve(host, port), &source, 0);
    if (fd < 0) die("socket: %s", strerror(errno));
    uint64_t begin = now_ns(), end = begin + seconds * SECOND, sent = 0, blocked = 0;
    for (uint64_t now; (now = now_ns()) < end;) {
        uint64_t due = (now - begin) * (rate / SECOND);
        if (sent + BATCH > due) {
            struct timespec rest = {0, 50000};
            nanosleep(&rest, NULL);
            continue;
        }
        struct mmsghdr batch[BATCH] = {0};
        for (int i = 0; i < BATCH; i++) {
            struct iovec *part = parts + (sent + i) % PREPARED;
            /* Message IDs go on over 65,536 of them, so that few are repeats */
            if (kind->build != noise && kind->build != hello && kind->build != record) {
                uint8_t *b = part->iov_base;
                b[2] = (sent + i) >> 8, b[3] = sent + i;
            }
            batch[i].msg_hdr = (struct msghdr){.msg_iov = part, .msg_iovlen = 1};
        }
        int n = sendmmsg(fd, batch, BATCH, 0);
        if (n <= 0) blocked++;
        else sent += n;
    }
    double took = (now_ns() - begin) / 1e9;
    printf("{\"kind\": \"%s\", \"sent\": %llu, \"per_s\": %.0f, \"blocked\": %llu, \"cpu_s\": %.2f}\n", kind->name,
           (unsigned long long)sent, sent / took, (unsigned long long)blocked, own_cpu());
    return sent ? 0 : EXIT_NOTHING;
}
