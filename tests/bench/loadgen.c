/* Load for a proxy in front of mockengine; every byte of every answer is checked.
 *
 * Each connection sends its next request when the answer before is complete. Requests look like openai-python's; their
 * lengths and request ids differ from one to the next, unless they are to be the same (--same). Head and body are one
 * write, or two (--split), as openai-python's are. Connections start one after another over the ramp. After the warm-up a window of so many seconds is counted: requests and events that end in it, the
 * CPU time of the watched processes between its two ends (their own CPU clocks, ns), their memory at its end. Then
 * answers under way are awaited, or cut (--cut: paced streams would take seconds to end).
 *
 * --slices=N parts the window into N, and takes CPU time and counts of each. The watched process is told by SIGUSR1 and
 * SIGUSR2 which kind each is: on, off, off, on, ... so that neither kind is always the first of its pair.
 *
 * Prints one JSON object. Times are microseconds: `latency` request to last byte, `first_byte` request to the first
 * byte of the body, `lag` event sent by the engine to event read here.
 */
#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEAD_LIMIT = 8192, READ_SIZE = 1 << 18, EVENTS_AT_ONCE = 512, WATCHED_LIMIT = 64, FAILURE_LIMIT = 200,
       VARIETY = 16, LENGTH_STEP = 61, ID_DIGITS = 32, SLICES_LIMIT = 4096 };
static const uint64_t SECOND = 1000000000u, STUCK_AFTER = 10 * SECOND;

struct samples {
    uint32_t *us_tenths; /* tenths of a microsecond */
    size_t count, room;
};

enum phase { UNBORN, CONNECTING, SENDING, READING, DEAD };
enum chunk { CHUNK_SIZE, CHUNK_SIZE_END, CHUNK_DATA, CHUNK_DATA_CR, CHUNK_DATA_LF, TRAILER, TRAILER_LF };

struct connection {
    int fd;
    enum phase phase;
    const struct request *request;
    uint64_t number;       /* of the request, in its id */
    size_t sent;
    uint64_t begun;
    bool counted;          /* the request began inside the window */
    char head[HEAD_LIMIT + 1];
    size_t head_size;
    bool in_body, chunked, closes;
    uint64_t left;         /* of the body or of the chunk */
    enum chunk chunk;
    int size_digits;
    size_t position;       /* in the body */
    char event[EVENT_SIZE];
    const char *fault;     /* what is wrong with the answer */
};

struct request {
    char *bytes;
    size_t size, head_size, id_at; /* id_at 0: it has no id */
};

static int port, connection_count = 1, cut, same, split;
static double window_seconds = 1, warmup_seconds, ramp_seconds;
static long events, interval, ticks, answer_size, upload = 300, slice_count;
static const char *key = "none";

static int poller, alive;
static struct request requests[VARIETY];
static uint64_t begun_requests;
static char *expected_answer;
static size_t stream_size;
static bool in_window, ending;
static uint64_t window_begin, window_end;
static struct samples latency, first_byte, lag;
static uint64_t answers, event_count, all_answers, failed, cut_streams, reconnects;
static char first_failure[400];
static pid_t watched[WATCHED_LIMIT];
static int watched_count;
static pid_t engine;

struct slice {
    double cpu_seconds;
    uint64_t answers, events;
};
static struct slice slice_ends[SLICES_LIMIT + 1]; /* as of the window's begin, and of each slice's end */
static long slice_number;

static void fatal(const char *what)
{
    perror(what);
    exit(2);
}

/* ---- samples */

static void add_sample(struct samples *s, uint64_t ns)
{
    if (s->count == s->room) {
        s->room = s->room ? 2 * s->room : 65536;
        if (!(s->us_tenths = realloc(s->us_tenths, s->room * sizeof *s->us_tenths)))
            abort();
    }
    s->us_tenths[s->count++] = ns / 100 > UINT32_MAX ? UINT32_MAX : (uint32_t)(ns / 100);
}

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, struct samples *s)
{
    if (!s->count) {
        printf(", \"%s\": null", name);
        return;
    }
    qsort(s->us_tenths, s->count, sizeof *s->us_tenths, ascending);
    printf(", \"%s\": {\"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f}", name, s->us_tenths[(s->count - 1) / 2] / 10.0,
           s->us_tenths[(s->count - 1) * 99 / 100] / 10.0, s->us_tenths[s->count - 1] / 10.0);
}

/* ---- the watched processes */

static double cpu_seconds(pid_t pid)
{
    clockid_t clock;
    struct timespec t;
    if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t))
        fatal("loadgen: a watched process is gone");
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double watched_cpu_seconds(void)
{
    double sum = 0;
    for (int i = 0; i < watched_count; i++)
        sum += cpu_seconds(watched[i]);
    return sum;
}

/* The resident memory of all watched processes. */
static long watched_bytes(void)
{
    long sum = 0;
    for (int i = 0; i < watched_count; i++) {
        char path[64];
        long total, resident;
        snprintf(path, sizeof path, "/proc/%d/statm", watched[i]);
        FILE *file = fopen(path, "r");
        if (!file || fscanf(file, "%ld %ld", &total, &resident) != 2)
            fatal(path);
        fclose(file);
        sum += resident * sysconf(_SC_PAGESIZE);
    }
    return sum;
}

/* End a slice, and begin the next. */
static void next_slice(void)
{
    slice_ends[slice_number] = (struct slice){watched_cpu_seconds(), answers, event_count};
    bool on = slice_number % 4 == 0 || slice_number % 4 == 3 || slice_number == slice_count;
    if (kill(watched[0], on ? SIGUSR1 : SIGUSR2))
        fatal("loadgen: a watched process is gone");
    slice_number++;
}

static double tool_cpu_seconds(void)
{
    return cpu_seconds(getpid()) + (engine ? cpu_seconds(engine) : 0);
}

/* ---- requests */

static void begin(struct connection *c);

static void watch(struct connection *c, uint32_t what, int operation)
{
    struct epoll_event interest = {.events = what, .data.ptr = c};
    epoll_ctl(poller, operation, c->fd, &interest);
}

static void hang_up(struct connection *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

static void fail(struct connection *c, const char *why)
{
    if (!failed++) {
        snprintf(first_failure, sizeof first_failure, "%s (byte %zu of the body; %.200s)", why, c->position, c->head);
        for (char *p = first_failure; *p; p++)
            if (*p < ' ' || *p == '"' || *p == '\\')
                *p = ' ';
    }
    ending |= failed > FAILURE_LIMIT;
    hang_up(c);
    begin(c);
}

static void dial(struct connection *c)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        fatal("loadgen: socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->phase = CONNECTING;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        fatal("loadgen: connect");
    watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
}

static void send_request(struct connection *c)
{
    const struct request *r = c->request;
    if (r->id_at) { /* shared by all connections, and written anew for each send */
        put_hex(r->bytes + r->id_at, c->number * 0x9e3779b97f4a7c15u, ID_DIGITS / 2);
        put_hex(r->bytes + r->id_at + ID_DIGITS / 2, c->number, ID_DIGITS / 2);
    }
    ssize_t done = 0;
    do {
        size_t end = split && c->sent < r->head_size ? r->head_size : r->size;
        done = send(c->fd, r->bytes + c->sent, end - c->sent, MSG_NOSIGNAL);
        if (done < 0 && errno != EAGAIN) {
            fail(c, "the connection broke while the request was sent");
            return;
        }
        c->sent += done > 0 ? (size_t)done : 0;
    } while (done > 0 && c->sent == r->head_size && c->sent < r->size);
    enum phase before = c->phase;
    c->phase = c->sent < r->size ? SENDING : READING;
    if (c->phase != before)
        watch(c, c->phase == SENDING ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
}

static void begin(struct connection *c)
{
    if (ending) {
        hang_up(c);
        c->phase = DEAD;
        alive--;
        return;
    }
    c->begun = now_ns();
    c->number = begun_requests++;
    c->request = &requests[c->number % (same ? 1 : VARIETY)];
    c->counted = in_window;
    c->sent = c->head_size = c->position = 0;
    c->head[0] = 0;
    c->in_body = c->chunked = c->closes = false;
    c->chunk = CHUNK_SIZE;
    c->size_digits = 0;
    c->left = 0;
    c->fault = NULL;
    if (c->fd < 0) {
        dial(c);
    } else {
        c->phase = READING;
        send_request(c);
    }
}

/* ---- answers */

static void check_event(struct connection *c, uint64_t now)
{
    uint64_t number = c->position / EVENT_SIZE, sent = get_hex(c->event + STAMP_AT, STAMP_DIGITS);
    if (memcmp(c->event, EVENT_BEFORE, STAMP_AT) || memcmp(c->event + AFTER_AT, EVENT_AFTER, EVENT_SIZE - AFTER_AT)
        || sent > now)
        c->fault = "an event was altered";
    else if (get_hex(c->event + NUMBER_AT, NUMBER_DIGITS) != number)
        c->fault = "an event was lost, doubled or moved";
    if (in_window) {
        event_count++;
        add_sample(&lag, now - sent);
    }
}

/* Check bytes of the body against what the engine sends. */
static void take_body(struct connection *c, const char *bytes, size_t size, uint64_t now)
{
    if (!c->position && size && c->counted)
        add_sample(&first_byte, now - c->begun);
    if (!events) {
        if (c->position + size > (size_t)answer_size || memcmp(expected_answer + c->position, bytes, size))
            c->fault = "the answer was altered";
        c->position += size;
        return;
    }
    while (size && !c->fault) {
        size_t left = stream_size - c->position, at = c->position % EVENT_SIZE, taken;
        if (left > LAST_EVENT_SIZE) {
            taken = size < EVENT_SIZE - at ? size : EVENT_SIZE - at;
            memcpy(c->event + at, bytes, taken);
            if (at + taken == EVENT_SIZE)
                check_event(c, now);
        } else {
            taken = size < left ? size : left;
            if (!left || memcmp(LAST_EVENT + LAST_EVENT_SIZE - left, bytes, taken)) {
                c->fault = "the end of the stream was altered";
                return;
            }
        }
        c->position += taken;
        bytes += taken, size -= taken;
    }
}

/* Take bytes of a chunked body (RFC 9112 §7.1, no extensions, no trailers); the number of bytes used, the end included. */
static size_t take_chunks(struct connection *c, const char *bytes, size_t size, uint64_t now, bool *complete)
{
    for (size_t i = 0; i < size;) {
        if (c->chunk == CHUNK_DATA) {
            size_t taken = size - i < c->left ? size - i : (size_t)c->left;
            take_body(c, bytes + i, taken, now);
            i += taken;
            c->left -= taken;
            if (!c->left)
                c->chunk = CHUNK_DATA_CR;
            continue;
        }
        char byte = bytes[i++];
        int digit = hex_digit(byte);
        if (c->chunk == CHUNK_SIZE && digit >= 0 && c->size_digits < 8) {
            c->left = c->left << 4 | (uint64_t)digit;
            c->size_digits++;
        } else if (c->chunk == CHUNK_SIZE && byte == '\r' && c->size_digits) {
            c->chunk = CHUNK_SIZE_END;
        } else if (c->chunk == CHUNK_SIZE_END && byte == '\n') {
            c->chunk = c->left ? CHUNK_DATA : TRAILER;
            c->size_digits = 0;
        } else if (c->chunk == CHUNK_DATA_CR && byte == '\r') {
            c->chunk = CHUNK_DATA_LF;
        } else if (c->chunk == CHUNK_DATA_LF && byte == '\n') {
            c->chunk = CHUNK_SIZE;
        } else if (c->chunk == TRAILER && byte == '\r') {
            c->chunk = TRAILER_LF;
        } else if (c->chunk == TRAILER_LF && byte == '\n') {
            *complete = true;
            return i;
        } else {
            c->fault = "the chunked framing is wrong";
            return size;
        }
    }
    return size;
}

static const char *read_head(struct connection *c)
{
    const char *length = strcasestr(c->head, "\r\ncontent-length:");
    c->chunked = strcasestr(c->head, "\r\ntransfer-encoding: chunked") != NULL;
    c->closes = strcasestr(c->head, "\r\nconnection: close") != NULL;
    c->in_body = true;
    if (strncmp(c->head, "HTTP/1.1 200 ", 13))
        return "the status is not 200";
    if (!length == !c->chunked)
        return "the head has no framing, or two";
    if (length)
        c->left = strtoull(length + 17, NULL, 10);
    return NULL;
}

static void complete(struct connection *c, uint64_t now)
{
    if (c->position != (events ? stream_size : (size_t)answer_size)) {
        fail(c, "the answer is too short");
        return;
    }
    all_answers++;
    if (in_window) {
        answers++;
        if (c->counted)
            add_sample(&latency, now - c->begun);
    }
    if (c->closes) {
        reconnects++;
        hang_up(c);
    }
    begin(c);
}

static void take_bytes(struct connection *c, const char *bytes, size_t size, uint64_t now)
{
    if (c->phase != READING) {
        fail(c, "bytes came before the request was sent");
        return;
    }
    if (!c->in_body) {
        size_t old = c->head_size, taken = size < HEAD_LIMIT - old ? size : HEAD_LIMIT - old;
        memcpy(c->head + old, bytes, taken);
        c->head[c->head_size = old + taken] = 0;
        char *end = strstr(c->head + (old < 3 ? 0 : old - 3), "\r\n\r\n");
        if (!end) {
            if (c->head_size == HEAD_LIMIT)
                fail(c, "the head is too long");
            return;
        }
        size_t used = (size_t)(end + 4 - c->head) - old;
        bytes += used, size -= used;
        end[2] = 0;
        c->fault = read_head(c);
    }
    bool whole = false;
    if (!c->fault && c->chunked) {
        size_t used = take_chunks(c, bytes, size, now, &whole);
        if (!c->fault && whole && used != size)
            c->fault = "bytes follow the answer";
    } else if (!c->fault) {
        if (size > c->left)
            c->fault = "bytes follow the answer";
        else
            take_body(c, bytes, size, now);
        c->left -= size;
        whole = !c->left;
    }
    if (c->fault)
        fail(c, c->fault);
    else if (whole)
        complete(c, now);
}

static void serve(struct connection *c, uint32_t what)
{
    static char bytes[READ_SIZE];
    if (what & EPOLLOUT && (c->phase == CONNECTING || c->phase == SENDING)) {
        send_request(c);
        if (c->fd < 0 || c->phase == DEAD)
            return;
    }
    if (!(what & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return;
    ssize_t size = recv(c->fd, bytes, sizeof bytes, 0);
    if (size > 0)
        take_bytes(c, bytes, (size_t)size, now_ns());
    else if (!size)
        fail(c, "the connection was closed");
    else if (errno != EAGAIN)
        fail(c, strerror(errno));
}

/* ---- the run */

static void make_request(struct request *r, size_t wanted)
{
    char *body = make_body(wanted, REQUEST_BEFORE, REQUEST_AFTER);
    size_t body_size = strlen(body);
    if (!(r->bytes = malloc(body_size + 2048)))
        abort();
    int head = sprintf(r->bytes,
                       "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: gzip, deflate\r\n"
                       "Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
                       "User-Agent: OpenAI/Python 2.8.0\r\nX-Stainless-Lang: python\r\n"
                       "X-Stainless-Package-Version: 2.8.0\r\nX-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\n"
                       "X-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.12.11\r\n"
                       "Authorization: Bearer %s\r\nX-Stainless-Async: async:asyncio\r\n"
                       "x-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\n"
                       "X-Bench: size=%ld events=%ld interval=%ld ticks=%ld\r\nContent-Length: %zu\r\n",
                       port, key, answer_size, events, interval, ticks, body_size);
    if (!same) {
        r->id_at = (size_t)head + strlen("X-Request-Id: ");
        head += sprintf(r->bytes + head, "X-Request-Id: %0*d\r\n", ID_DIGITS, 0);
    }
    head += sprintf(r->bytes + head, "\r\n");
    memcpy(r->bytes + head, body, body_size);
    r->head_size = (size_t)head;
    r->size = (size_t)head + body_size;
    free(body);
}

static void make_requests(void)
{
    for (int i = 0; i < (same ? 1 : VARIETY); i++)
        make_request(&requests[i], (size_t)(upload + i * LENGTH_STEP));
    expected_answer = make_body((size_t)answer_size, ANSWER_BEFORE, ANSWER_AFTER);
    stream_size = (size_t)events * EVENT_SIZE + LAST_EVENT_SIZE;
}

static void parse_pids(char *list)
{
    for (char *word; (word = strsep(&list, ","));)
        if (*word && watched_count < WATCHED_LIMIT)
            watched[watched_count++] = atoi(word);
}

static void parse_options(int count, char **words)
{
    static const struct option known[] = {
        {"port", 1, 0, 'p'}, {"connections", 1, 0, 'c'}, {"seconds", 1, 0, 's'}, {"warmup", 1, 0, 'w'},
        {"ramp", 1, 0, 'r'}, {"events", 1, 0, 'e'}, {"interval", 1, 0, 'i'}, {"ticks", 0, 0, 't'}, {"size", 1, 0, 'z'},
        {"upload", 1, 0, 'u'}, {"key", 1, 0, 'k'}, {"watch", 1, 0, 'P'}, {"engine", 1, 0, 'E'}, {"cut", 0, &cut, 1},
        {"same", 0, &same, 1}, {"split", 0, &split, 1}, {"slices", 1, 0, 'n'},
        {0, 0, 0, 0}};
    for (int option; (option = getopt_long(count, words, "", known, NULL)) != -1;) {
        switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'c': connection_count = atoi(optarg); break;
        case 's': window_seconds = atof(optarg); break;
        case 'w': warmup_seconds = atof(optarg); break;
        case 'r': ramp_seconds = atof(optarg); break;
        case 'e': events = atol(optarg); break;
        case 'i': interval = atol(optarg); break;
        case 't': ticks = 1; break;
        case 'z': answer_size = atol(optarg); break;
        case 'u': upload = atol(optarg); break;
        case 'k': key = optarg; break;
        case 'P': parse_pids(optarg); break;
        case 'E': engine = atoi(optarg); break;
        case 'n': slice_count = atol(optarg); break;
        case 0: break;
        default: exit(2);
        }
    }
    if (!port || connection_count < 1) {
        fprintf(stderr, "loadgen: --port and --connections are needed\n");
        exit(2);
    }
    if (slice_count < 0 || slice_count > SLICES_LIMIT || (slice_count && !watched_count)) {
        fprintf(stderr, "loadgen: --slices is at most %d, and needs --watch\n", SLICES_LIMIT);
        exit(2);
    }
}

static void end_run(struct connection *all)
{
    ending = true;
    for (int i = 0; i < connection_count; i++) {
        struct connection *c = &all[i];
        if (c->phase == UNBORN || (cut && c->phase != DEAD)) {
            cut_streams += c->phase != UNBORN;
            hang_up(c);
            c->phase = DEAD;
            alive--;
        }
    }
}

/* When the next slice begins; after the last one, when that ends. */
static uint64_t slice_begin(uint64_t begin_at, uint64_t end_at)
{
    return begin_at + (end_at - begin_at) / (uint64_t)slice_count * (uint64_t)slice_number;
}

static void print_slices(void)
{
    printf(", \"slices\": [");
    for (long i = 1; i < slice_number; i++)
        printf("%s[%.9f, %lu, %lu]", i > 1 ? ", " : "", slice_ends[i].cpu_seconds - slice_ends[i - 1].cpu_seconds,
               slice_ends[i].answers - slice_ends[i - 1].answers, slice_ends[i].events - slice_ends[i - 1].events);
    printf("]");
}

int main(int count, char **words)
{
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1000);
    parse_options(count, words);
    make_requests();
    struct connection *all = calloc((size_t)connection_count, sizeof *all);
    if (!all)
        abort();
    for (int i = 0; i < connection_count; i++)
        all[i].fd = -1;
    alive = connection_count;
    poller = epoll_create1(0);

    uint64_t start = now_ns(), ramp = (uint64_t)(ramp_seconds * 1e9);
    uint64_t begin_at = start + (uint64_t)(warmup_seconds * 1e9);
    uint64_t end_at = begin_at + (uint64_t)(window_seconds * 1e9);
    double cpu = 0, tool_cpu = 0;
    long resident = 0;
    int born = 0;
    while (alive) {
        uint64_t now = now_ns();
        if (!window_begin && now >= begin_at) {
            cpu = watched_cpu_seconds();
            tool_cpu = tool_cpu_seconds();
            window_begin = now;
            in_window = true;
        }
        /* The signal is sent where the slice ends: what is read from then on belongs to the next. */
        if (in_window && slice_number <= slice_count && slice_count && now >= slice_begin(begin_at, end_at))
            next_slice();
        if (in_window && (now >= end_at || ending)) {
            window_end = now;
            in_window = false;
            cpu = watched_cpu_seconds() - cpu;
            tool_cpu = tool_cpu_seconds() - tool_cpu;
            resident = watched_bytes();
            end_run(all);
            continue;
        }
        if (now >= end_at + STUCK_AFTER) {
            for (int i = 0; i < connection_count; i++)
                if (all[i].phase != DEAD)
                    fail(&all[i], "no end of the answer within 10 s");
            continue;
        }
        uint64_t next = !window_begin ? begin_at : in_window ? end_at : end_at + STUCK_AFTER;
        if (in_window && slice_number < slice_count)
            next = slice_begin(begin_at, end_at);
        for (; born < connection_count && !ending; born++) {
            uint64_t at = start + ramp * (uint64_t)born / (uint64_t)connection_count;
            if (at > now) {
                next = at < next ? at : next;
                break;
            }
            begin(&all[born]);
        }
        uint64_t wait = next > now ? next - now : 0;
        struct timespec timeout = {.tv_sec = (time_t)(wait / SECOND), .tv_nsec = (long)(wait % SECOND)};
        struct epoll_event ready[EVENTS_AT_ONCE];
        int ready_count = epoll_pwait2(poller, ready, EVENTS_AT_ONCE, &timeout, NULL);
        for (int i = 0; i < ready_count; i++)
            serve(ready[i].data.ptr, ready[i].events);
    }
    printf("{\"seconds\": %.6f, \"answers\": %lu, \"events\": %lu, \"failed\": %lu, \"cut\": %lu, \"reconnects\": %lu, "
           "\"cpu_seconds\": %.9f, \"tool_cpu_seconds\": %.9f, \"resident_bytes\": %ld",
           (double)(window_end - window_begin) / 1e9, answers, event_count, failed, cut_streams, reconnects, cpu, tool_cpu,
           resident);
    print_samples("latency", &latency);
    print_samples("first_byte", &first_byte);
    print_samples("lag", &lag);
    print_slices();
    printf(", \"first_failure\": \"%s\"}\n", first_failure);
    return 0;
}
