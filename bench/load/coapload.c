/* coapload - load generator for CoAP over plain UDP.
 * Simulates -n devices, each with a socket (and, with -b, a source address) of its own and -W requests outstanding,
 * in a closed loop (the next request as soon as one is answered) or at a fixed total rate (-r).
 * Build: gcc -O2 -Wall -o coapload coapload.c        (or: make -C bench/load)
 */
#define _GNU_SOURCE
#include "load.h"

#define BATCH 64

struct device {
    int fd;
    uint16_t mid;
    uint64_t requests;
};

struct slot { /* one request at a time */
    uint64_t first, sent; /* when the exchange began (-r: was due), when its datagram was last sent */
    uint32_t device, generation;
    uint16_t mid;
    uint8_t busy, tries, acknowledged;
};

static const char *host = "127.0.0.1", *port = "5683", *path = "/", *query = "t=bench/topic", *tag = "";
static int devices = 64, window = 1, payload = 64, method = 2, format = -1, no_response = -1, token_length = 8;
static int max_retransmit = 4, non = 0, any_reply = 0, sleepy = 0, silent = 0, list = 0;
static double seconds = 10, warm_up = 1, rate = 0, duplicates = 0, timeout_ms = 2000, first = 0;
static struct source source;
static struct server server;

static struct device *device;
static struct slot *slot;
static uint32_t slots, *free_slot, free_count, free_head, free_tail; /* with -r: idle slots, first in first out */
static struct request request;
static struct histogram latency;
static uint64_t mid_wraps;

static struct figures { /* set to zero when the warm-up ends */
    uint64_t sent, ok, lost, late, bad, retransmits, duplicates, empty_acks, separate, resets, send_errors, overruns;
    uint64_t codes[256];
} f;

static const char usage_text[] =
    "usage: coapload [options]\n"
    "  -h HOST        server, default 127.0.0.1          -p PORT   default 5683\n"
    "  -n DEVICES     default 64, one socket each        -W COUNT  outstanding requests per device, default 1\n"
    "  -t SECONDS     measured time, default 10          -w SECONDS  warm-up before it, default 1\n"
    "  -u QUERY       Uri-Query options, separated by &, default t=bench/topic\n"
    "  -P PATH        Uri-Path, default /                -m CODE   method: 1 GET, 2 POST (default), 3 PUT, 4 DELETE\n"
    "  -l BYTES       payload, default 64                -f NUMBER Content-Format, default none\n"
    "  -b ADDR[/LEN]  source address; with a range such as 127.0.0.0/8 one address per device, in order\n"
    "  -r RATE        requests per second in all (open loop); latency then counts from when a request was due\n"
    "  -T MS          acknowledgement timeout, default 2000, doubled by every retransmission\n"
    "  -x COUNT       retransmissions before a request is lost, default 4\n"
    "  -N             NON requests                       -o NUMBER No-Response option\n"
    "  -L 4|8         token length, default 8            -D PERCENT of the requests sent twice\n"
    "  -e             any datagram with the token is an answer (UDP echo servers)\n"
    "  -S             sleep while nothing arrives; default: poll, so that the server's CPU time holds no wake-ups\n"
    "  -g TEXT        tag, printed back                  -j, --json  one JSON object instead of lines\n"
    "  --server-pid PID[,PID...]  also print the server's CPU time, requests per CPU second and memory\n"
    "  --first INDEX  number of the first device, default 0\n"
    "  --list         only print index,source address of every device\n";

static void usage(int status) {
    fputs(usage_text, status ? stderr : stdout);
    exit(status);
}

static void parse_options(int argc, char **argv) {
    static const struct option longs[] = {{"json", 0, 0, 'j'}, {"server-pid", 1, 0, 256}, {"first", 1, 0, 257},
                                          {"list", 0, 0, 258}, {"help", 0, 0, 259}, {0}};
    int o;
    while ((o = getopt_long(argc, argv, "h:p:n:W:t:w:u:P:m:l:f:b:r:T:x:No:L:D:eSg:j", longs, NULL)) != -1) switch (o) {
        case 'h': host = optarg; break;
        case 'p': port = optarg; break;
        case 'n': devices = parse_number("-n", optarg, 1, 1000000); break;
        case 'W': window = parse_number("-W", optarg, 1, 65535); break;
        case 't': seconds = parse_number("-t", optarg, 0.001, 1e6); break;
        case 'w': warm_up = parse_number("-w", optarg, 0, 1e6); break;
        case 'u': query = optarg; break;
        case 'P': path = optarg; break;
        case 'm': method = parse_number("-m", optarg, 1, 31); break;
        case 'l': payload = parse_number("-l", optarg, 0, MAX_DATAGRAM); break;
        case 'f': format = parse_number("-f", optarg, 0, 65535); break;
        case 'b': source_parse(&source, optarg); break;
        case 'r': rate = parse_number("-r", optarg, 0, 1e9); break;
        case 'T': timeout_ms = parse_number("-T", optarg, 1, 1e6); break;
        case 'x': max_retransmit = parse_number("-x", optarg, 0, 10); break;
        case 'N': non = 1; break;
        case 'o': no_response = parse_number("-o", optarg, 0, 255); break;
        case 'L': token_length = parse_number("-L", optarg, 4, 8); break;
        case 'D': duplicates = parse_number("-D", optarg, 0, 100); break;
        case 'e': any_reply = 1; break;
        case 'S': sleepy = 1; break;
        case 'g': tag = optarg; break;
        case 'j': out_json = 1; break;
        case 256: server_parse(&server, optarg); break;
        case 257: first = parse_number("--first", optarg, 0, 1e15); break;
        case 258: list = 1; break;
        case 259: usage(0); break;
        default: usage(EXIT_USAGE);
        }
    if (optind < argc) usage(EXIT_USAGE);
    if (token_length != 4 && token_length != 8) die("-L: 4 or 8");
    if (token_length == 4 && (uint64_t)devices * window > 65536) die("-L 4: at most 65536 requests outstanding");
    silent = non && no_response >= 0 && (no_response & 2); /* nothing comes back: RFC 7967 */
    if (silent && rate <= 0) die("-N -o %d: nothing answers such requests, they need a rate (-r)", no_response);
    server_check(&server);
}

static void slot_free(uint32_t s) {
    slot[s].busy = 0;
    free_slot[free_tail] = s;
    free_tail = (free_tail + 1) % slots;
    free_count++;
}

static uint32_t slot_take(void) {
    uint32_t s = free_slot[free_head];
    free_head = (free_head + 1) % slots;
    free_count--;
    return s;
}

static size_t build(uint8_t *b, uint32_t si) {
    struct slot *s = slot + si;
    return message_build(b, &request, non ? NON : CON, token_length, s->mid, si, s->generation);
}

/* Starts a new exchange in a slot and writes its datagram. */
static size_t begin(uint8_t *b, uint32_t si, uint64_t due) {
    struct slot *s = slot + si;
    struct device *d = device + s->device;
    s->generation = (s->generation + 1) & (token_length == 8 ? 0xffffffffu : 0xffff);
    s->mid = d->mid++;
    if (++d->requests == 65537) mid_wraps++;
    s->tries = s->acknowledged = 0;
    s->busy = 1;
    s->sent = now_ns();
    s->first = due ? due : s->sent;
    return build(b, si);
}

static void transmit(uint32_t si, const uint8_t *b, size_t length) {
    if (send(device[slot[si].device].fd, b, length, 0) < 0) f.send_errors++;
}

static void send_request(uint32_t si, uint64_t due) {
    uint8_t b[MAX_DATAGRAM];
    size_t length = begin(b, si, due);
    f.sent++;
    transmit(si, b, length);
    if (duplicates > 0 && drand48() * 100 < duplicates) {
        f.duplicates++;
        transmit(si, b, length);
    }
    if (silent) slot_free(si);
}

static void answered(struct slot *s, int code, uint64_t t) {
    f.ok++;
    f.codes[code]++;
    histogram_add(&latency, t > s->first ? t - s->first : 0);
}

/* Takes one datagram of a device. Returns the slot that it made free, or -1. */
static int64_t receive(uint32_t di, const uint8_t *b, size_t length, uint64_t t) {
    struct message m;
    if (!message_parse(&m, b, length, token_length)) {
        f.bad++;
        return -1;
    }
    if (m.code == 0) { /* empty: belongs to a request of this device by its Message ID */
        uint8_t reply[4];
        if (m.type == CON) { /* ping */
            empty_message(reply, RST, m.mid);
            if (send(device[di].fd, reply, 4, 0) < 0) f.send_errors++;
            return -1;
        }
        for (uint32_t si = di; si < slots; si += devices) {
            struct slot *s = slot + si;
            if (!s->busy || s->mid != m.mid) continue;
            if (m.type == RST) {
                f.resets++;
                return si;
            }
            f.empty_acks++;
            s->acknowledged = 1;
            if (no_response < 0 || !(no_response & 2)) return -1;
            answered(s, 0, t); /* the acknowledgement is all that comes */
            return si;
        }
        f.late++;
        return -1;
    }
    if (m.type == CON && !any_reply) {
        uint8_t reply[4];
        empty_message(reply, m.code < 32 ? RST : ACK, m.mid);
        if (send(device[di].fd, reply, 4, 0) < 0) f.send_errors++;
    }
    if (m.token_length != token_length || m.slot >= slots || (m.code < 32 && !any_reply)) {
        f.bad++;
        return -1;
    }
    struct slot *s = slot + m.slot;
    if (!s->busy || s->generation != m.generation || s->device != di) { /* given up, or answered before */
        f.late++;
        return -1;
    }
    if (!any_reply && m.type == ACK && (non || m.mid != s->mid)) {
        f.bad++;
        return -1;
    }
    if (m.type == CON && !any_reply) f.separate++;
    answered(s, m.code, t);
    return m.slot;
}

static void sweep(uint64_t t) {
    for (uint32_t si = 0; si < slots; si++) {
        struct slot *s = slot + si;
        int retransmits = non ? 0 : max_retransmit;
        if (!s->busy) continue;
        uint64_t since = s->acknowledged ? s->first : s->sent;
        if (t < since || t - since < exchange_limit(timeout_ms * MILLISECOND, s->tries, s->acknowledged, retransmits))
            continue;
        if (!s->acknowledged && s->tries < retransmits) {
            uint8_t b[MAX_DATAGRAM];
            s->tries++;
            s->sent = t;
            f.retransmits++;
            transmit(si, b, build(b, si));
        } else {
            f.lost++;
            if (rate > 0)
                slot_free(si);
            else
                send_request(si, 0);
        }
    }
}

static void report(double elapsed, double cpu0, double cpu1, double busy) {
    uint64_t t = now_ns(), unanswered = 0; /* waiting for longer than an answer should take, but not given up yet */
    for (uint32_t si = 0; si < slots; si++)
        unanswered += slot[si].busy && (slot[si].tries || t - slot[si].sent > timeout_ms * MILLISECOND);
    out_text("tool", "coapload");
    out_text("tag", tag);
    out_int("devices", devices);
    out_int("window", window);
    out_float("seconds", elapsed, 3);
    out_int("sent", f.sent);
    out_int("ok", f.ok);
    out_float("req_per_s", f.ok / elapsed, 1);
    out_latency("", &latency, "us", 1);
    out_int("lost", f.lost);
    out_int("unanswered", unanswered);
    out_int("retransmits", f.retransmits);
    out_int("late", f.late);
    out_int("bad", f.bad);
    out_int("empty_acks", f.empty_acks);
    out_int("separate", f.separate);
    out_int("resets", f.resets);
    out_int("duplicates", f.duplicates);
    out_int("send_errors", f.send_errors);
    out_int("overruns", f.overruns);
    out_int("mid_wraps", mid_wraps);
    out_codes(f.codes);
    out_float("client_busy_pct", busy, 1);
    out_server(cpu0, cpu1, elapsed, silent ? f.sent : f.ok, server_rss(&server));
    out_end();
    if (mid_wraps)
        fprintf(stderr, "coapload: %llu device(s) sent more than 65536 requests: Message IDs came again within "
                "EXCHANGE_LIFETIME, which a server may take for duplicates. Use more devices or less time.\n",
                (unsigned long long)mid_wraps);
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    if (list) {
        for (int i = 0; i < devices; i++)
            printf("%.0f,%s\n", first + i, source_text(&source, (uint64_t)first + i));
        return 0;
    }
    raise_file_limit(devices);
    struct addrinfo *to = resolve(host, port);
    if (source.set && to->ai_family != AF_INET) die("-b: only for IPv4");
    request_build(&request, method, path, format, query, no_response, payload);
    srand48(getpid() ^ time(NULL));

    slots = devices * window;
    device = allocate(devices, sizeof *device);
    slot = allocate(slots, sizeof *slot);
    free_slot = allocate(slots, sizeof *free_slot);
    int ep = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < devices; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
        int size = 1 << 20;
        device[i].fd = open_socket(to, &source, (uint64_t)first + i);
        if (device[i].fd < 0) die("socket of device %d: %s", i, strerror(errno));
        setsockopt(device[i].fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
        device[i].mid = lrand48();
        epoll_ctl(ep, EPOLL_CTL_ADD, device[i].fd, &e);
    }
    for (uint32_t i = 0; i < slots; i++) {
        slot[i].device = i % devices;
        slot[i].generation = lrand48();
    }

    static uint8_t in[BATCH][MAX_DATAGRAM], out[BATCH][MAX_DATAGRAM];
    struct mmsghdr in_message[BATCH] = {0}, out_message[BATCH] = {0};
    struct iovec in_vector[BATCH], out_vector[BATCH];
    for (int i = 0; i < BATCH; i++) {
        in_vector[i] = (struct iovec){in[i], MAX_DATAGRAM};
        in_message[i].msg_hdr.msg_iov = &in_vector[i];
        out_vector[i] = (struct iovec){out[i], 0};
        out_message[i].msg_hdr.msg_iov = &out_vector[i];
        in_message[i].msg_hdr.msg_iovlen = out_message[i].msg_hdr.msg_iovlen = 1;
    }

    uint64_t start = now_ns(), t = start, begin_ns = start + warm_up * SECOND, end_ns = begin_ns + seconds * SECOND;
    uint64_t next_sweep = start, idle_ns = 0, idle_since = 0, issued = 0;
    int measuring = 0;
    double cpu0 = -1, own0 = 0;
    for (uint32_t i = 0; i < slots; i++)
        if (rate > 0)
            slot_free(i);
        else
            send_request(i, 0);
    while ((t = now_ns()) < end_ns) {
        if (idle_since) idle_ns += t - idle_since;
        idle_since = 0;
        if (!measuring && t >= begin_ns) {
            measuring = 1;
            end_ns += t - begin_ns;
            begin_ns = t;
            memset(&f, 0, sizeof f);
            memset(&latency, 0, sizeof latency);
            idle_ns = 0;
            own0 = own_cpu();
            cpu0 = server_cpu(&server);
        }
        if (rate > 0) {
            uint64_t due = (t - start) * 1e-9 * rate;
            for (int burst = 0; issued < due && burst < 512; burst++, issued++)
                if (free_count)
                    send_request(slot_take(), start + issued / rate * SECOND);
                else
                    f.overruns++;
        }
        struct epoll_event events[256];
        int n = epoll_wait(ep, events, 256, !sleepy ? 0 : rate > 0 ? 1 : 20);
        if (n == 0) idle_since = t;
        for (int e = 0; e < n; e++) {
            uint32_t di = events[e].data.u32;
            int fd = device[di].fd, k = recvmmsg(fd, in_message, BATCH, MSG_DONTWAIT, NULL), queued = 0;
            if (k <= 0) {
                if (errno == ECONNREFUSED) f.send_errors++;
                continue;
            }
            t = now_ns();
            for (int i = 0; i < k; i++) {
                int64_t si = receive(di, in[i], in_message[i].msg_len, t);
                if (si < 0) continue;
                if (rate > 0) {
                    slot_free(si);
                } else {
                    out_vector[queued].iov_len = begin(out[queued], si, 0);
                    queued++;
                }
            }
            f.sent += queued;
            for (int done = 0; done < queued;) {
                int r = sendmmsg(fd, out_message + done, queued - done, 0);
                if (r <= 0) f.send_errors++;
                done += r > 0 ? r : 1;
            }
            for (int i = 0; duplicates > 0 && i < queued; i++)
                if (drand48() * 100 < duplicates) {
                    f.duplicates++;
                    if (send(fd, out[i], out_vector[i].iov_len, 0) < 0) f.send_errors++;
                }
        }
        if (t >= next_sweep) {
            next_sweep = t + SWEEP_INTERVAL;
            sweep(t);
        }
    }
    double cpu1 = server_cpu(&server), elapsed = (t - begin_ns) * 1e-9;
    report(elapsed, cpu0, cpu1, sleepy ? 100 * (own_cpu() - own0) / elapsed : 100 - idle_ns / 1e7 / elapsed);
    return f.ok || silent ? 0 : EXIT_NOTHING;
}
