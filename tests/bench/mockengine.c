/* An engine that costs next to nothing, for measuring what stands in front of it.
 *
 *   mockengine          listens on a free port of 127.0.0.1 and prints it
 *
 * POST anything: the request's `X-Bench` field says what to answer, as name=number words:
 *   size      a plain answer of so many bytes, or
 *   events    a stream of so many events, chunked, each sent with one send() as uvicorn does
 *   interval  microseconds between events; 0: as fast as they go
 *   ticks     1: all streams emit at common times, as the steps of a real engine's batch do;
 *             0: the first event at once, the others at a phase of the stream's own
 * The request's body must be that of wire.h, byte for byte, which says its own size; else the answer is 400.
 * GET anything: a list of models, which is also good enough for a health probe.
 *
 * One thread, one epoll, a heap of the streams by the time their next event is due.
 */
#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEAD_LIMIT = 16384, READ_SIZE = 1 << 18, EVENTS_AT_ONCE = 512, BACKLOG = 4096, BODIES = 127 };

static const char STREAM_HEAD[] = "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                                  "transfer-encoding: chunked\r\n\r\n";
static const char MODELS[] = "{\"object\":\"list\",\"data\":[{\"id\":\"DeepSeek-R1-Distill-Qwen-1.5B\",\"object\":\"model\"}]}";
static const char NOT_MINE[] = "{\"error\":{\"message\":\"the body is not the one that was sent\"}}";

struct connection {
    int fd;
    bool waits_for_room;      /* EPOLLOUT is asked for */
    char head[HEAD_LIMIT + 1];
    size_t head_size;
    bool in_body;
    bool altered;             /* a byte of the request's body is wrong */
    size_t body_size, body_seen;
    long size, events, interval, ticks;
    bool streaming;
    long sent;                /* events of this stream */
    uint64_t due;
    int place;                /* in the heap, -1: not in it */
    char *unsent;
    size_t unsent_size, unsent_room;
};

static int poller;
static struct connection **heap;
static int heap_size, heap_room;
static char chunk[16 + EVENT_SIZE + 2];
static size_t chunk_size, event_at;

static void fatal(const char *what)
{
    perror(what);
    exit(1);
}

/* ---- the heap of due times */

static void place(struct connection *c, int at)
{
    heap[at] = c;
    c->place = at;
}

static void sift_up(int at)
{
    struct connection *c = heap[at];
    for (int parent; at > 0 && heap[parent = (at - 1) / 2]->due > c->due; at = parent)
        place(heap[parent], at);
    place(c, at);
}

static void sift_down(int at)
{
    struct connection *c = heap[at];
    for (int child; (child = 2 * at + 1) < heap_size; at = child) {
        if (child + 1 < heap_size && heap[child + 1]->due < heap[child]->due)
            child++;
        if (heap[child]->due >= c->due)
            break;
        place(heap[child], at);
    }
    place(c, at);
}

static void schedule(struct connection *c, uint64_t due)
{
    c->due = due;
    if (heap_size == heap_room) {
        heap_room = heap_room ? 2 * heap_room : 1024;
        if (!(heap = realloc(heap, sizeof *heap * (size_t)heap_room)))
            abort();
    }
    heap[heap_size] = c;
    sift_up(heap_size++);
}

static void unschedule(struct connection *c)
{
    int at = c->place;
    if (at < 0)
        return;
    c->place = -1;
    if (at == --heap_size)
        return;
    place(heap[heap_size], at);
    sift_down(at);
    sift_up(at);
}

/* ---- output */

static void close_connection(struct connection *c)
{
    unschedule(c);
    close(c->fd);
    c->fd = -1;
    c->streaming = false;
}

static void ask_for_room(struct connection *c, bool wanted)
{
    if (c->waits_for_room == wanted)
        return;
    c->waits_for_room = wanted;
    struct epoll_event interest = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &interest);
}

static bool send_bytes(struct connection *c, const char *bytes, size_t size)
{
    if (!c->unsent_size) {
        ssize_t done = send(c->fd, bytes, size, MSG_NOSIGNAL);
        if (done < 0 && errno != EAGAIN) {
            close_connection(c);
            return false;
        }
        if (done > 0)
            bytes += done, size -= (size_t)done;
        if (!size)
            return true;
    }
    if (c->unsent_room < c->unsent_size + size) {
        c->unsent_room = 2 * (c->unsent_size + size);
        if (!(c->unsent = realloc(c->unsent, c->unsent_room)))
            abort();
    }
    memcpy(c->unsent + c->unsent_size, bytes, size);
    c->unsent_size += size;
    ask_for_room(c, true);
    return true;
}

static void send_unsent(struct connection *c)
{
    ssize_t done = send(c->fd, c->unsent, c->unsent_size, MSG_NOSIGNAL);
    if (done < 0) {
        if (errno != EAGAIN)
            close_connection(c);
        return;
    }
    c->unsent_size -= (size_t)done;
    memmove(c->unsent, c->unsent + done, c->unsent_size);
    if (c->unsent_size)
        return;
    ask_for_room(c, false);
    if (c->streaming && c->place < 0)
        schedule(c, now_ns());
}

static void send_answer(struct connection *c, const char *status, const char *body, size_t size)
{
    char head[200];
    int head_size = snprintf(head, sizeof head,
                             "HTTP/1.1 %s\r\nserver: uvicorn\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n",
                             status, size);
    static char whole[READ_SIZE];
    if ((size_t)head_size + size > sizeof whole) {
        if (send_bytes(c, head, (size_t)head_size))
            send_bytes(c, body, size);
        return;
    }
    memcpy(whole, head, (size_t)head_size);
    memcpy(whole + head_size, body, size);
    send_bytes(c, whole, (size_t)head_size + size);
}

/* Send one event of a stream and see to the next; *now* is when this pass of the loop began. */
static void emit(struct connection *c, uint64_t now)
{
    put_hex(chunk + event_at + STAMP_AT, now_ns(), STAMP_DIGITS);
    put_hex(chunk + event_at + NUMBER_AT, (uint64_t)c->sent, NUMBER_DIGITS);
    if (!send_bytes(c, chunk, chunk_size))
        return;
    if (++c->sent == c->events) {
        static const char end[] = "e\r\n" LAST_EVENT "\r\n0\r\n\r\n";
        _Static_assert(LAST_EVENT_SIZE == 0xe, "the chunk size above is that of the last event");
        c->streaming = false;
        send_bytes(c, end, sizeof end - 1);
    } else if (c->interval) {
        uint64_t interval = (uint64_t)c->interval * 1000;
        uint64_t phase = c->sent == 1 && !c->ticks ? (uint64_t)rand() % interval : interval;
        schedule(c, c->due + phase);
    } else if (!c->unsent_size) {
        schedule(c, now + 1); /* in the next pass: one event a pass for every stream */
    }
}

/* ---- requests */

struct bodies {
    const char *before, *after;
    struct { size_t size; char *bytes; } kept[BODIES];
};

/* A body of that size; those that a run uses are kept. */
static const char *body_of(size_t size, struct bodies *of)
{
    size_t at = size % BODIES;
    if (!of->kept[at].bytes || of->kept[at].size != size) {
        free(of->kept[at].bytes);
        of->kept[at].bytes = make_body(size, of->before, of->after);
        of->kept[at].size = size;
    }
    return of->kept[at].bytes;
}

static void answer(struct connection *c)
{
    static struct bodies answers = {ANSWER_BEFORE, ANSWER_AFTER, {{0}}};
    if (c->altered) {
        send_answer(c, "400 Bad Request", NOT_MINE, sizeof NOT_MINE - 1);
    } else if (!c->events) {
        send_answer(c, "200 OK", body_of((size_t)c->size, &answers), (size_t)c->size);
    } else if (send_bytes(c, STREAM_HEAD, sizeof STREAM_HEAD - 1)) {
        uint64_t now = now_ns(), interval = (uint64_t)c->interval * 1000;
        c->streaming = true;
        c->sent = 0;
        schedule(c, c->ticks ? (now / interval + 1) * interval : now);
    }
}

static long bench_number(const char *words, const char *name)
{
    const char *end = strchr(words, '\r'), *found = strstr(words, name);
    return found && found < end ? strtol(found + strlen(name), NULL, 10) : 0;
}

/* Read a complete head; false if the connection cannot go on. */
static bool begin_request(struct connection *c)
{
    const char *length = strcasestr(c->head, "\r\ncontent-length:");
    const char *words = strcasestr(c->head, "\r\nx-bench:");
    c->body_size = length ? strtoull(length + 17, NULL, 10) : 0;
    c->body_seen = 0;
    c->altered = false;
    if (!words)
        return !c->body_size; /* a GET */
    words += 2;
    c->size = bench_number(words, "size=");
    c->events = bench_number(words, "events=");
    c->interval = bench_number(words, "interval=");
    c->ticks = bench_number(words, "ticks=");
    return !c->ticks || c->interval;
}

static void take_bytes(struct connection *c, const char *bytes, size_t size)
{
    static struct bodies requests = {REQUEST_BEFORE, REQUEST_AFTER, {{0}}};
    while (size && c->fd >= 0) {
        if (c->streaming) { /* nobody pipelines here */
            close_connection(c);
            return;
        }
        if (!c->in_body) {
            size_t old = c->head_size, taken = size < HEAD_LIMIT - old ? size : HEAD_LIMIT - old;
            memcpy(c->head + old, bytes, taken);
            c->head[c->head_size = old + taken] = 0;
            char *end = strstr(c->head + (old < 3 ? 0 : old - 3), "\r\n\r\n");
            if (!end) {
                if (c->head_size == HEAD_LIMIT)
                    close_connection(c);
                return;
            }
            size_t used = (size_t)(end + 4 - c->head) - old;
            bytes += used, size -= used;
            end[2] = 0;
            c->head_size = 0;
            if (!begin_request(c)) {
                close_connection(c);
                return;
            }
            if (!strncmp(c->head, "GET ", 4)) {
                send_answer(c, "200 OK", MODELS, sizeof MODELS - 1);
                continue;
            }
            c->in_body = true;
        }
        size_t left = c->body_size - c->body_seen, taken = size < left ? size : left;
        const char *expected = body_of(c->body_size, &requests);
        c->altered |= memcmp(expected + c->body_seen, bytes, taken) != 0;
        c->body_seen += taken;
        bytes += taken, size -= taken;
        if (c->body_seen == c->body_size) {
            c->in_body = false;
            answer(c);
        }
    }
}

static void read_input(struct connection *c)
{
    static char bytes[READ_SIZE];
    ssize_t size = recv(c->fd, bytes, sizeof bytes, 0);
    if (size > 0)
        take_bytes(c, bytes, (size_t)size);
    else if (!size || errno != EAGAIN)
        close_connection(c);
}

static void accept_all(int listener)
{
    for (int fd, on = 1; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        struct connection *c = calloc(1, sizeof *c);
        if (!c)
            abort();
        c->fd = fd;
        c->place = -1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event interest = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &interest);
    }
}

static int listen_somewhere(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, BACKLOG)
        || getsockname(listener, (struct sockaddr *)&address, &size))
        fatal("mockengine: listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

static void free_closed(struct connection **closed, int count)
{
    for (int i = 0; i < count; i++) {
        free(closed[i]->unsent);
        free(closed[i]);
    }
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1000);
    event_at = (size_t)sprintf(chunk, "%x\r\n", (unsigned)EVENT_SIZE);
    chunk_size = event_at + (size_t)sprintf(chunk + event_at, EVENT_BEFORE "%*s" EVENT_AFTER "\r\n", STAMP_DIGITS + NUMBER_DIGITS, "");
    int listener = listen_somewhere();
    poller = epoll_create1(0);
    struct epoll_event interest = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &interest);
    for (;;) {
        struct timespec wait, *timeout = NULL;
        if (heap_size) {
            uint64_t now = now_ns(), left = heap[0]->due > now ? heap[0]->due - now : 0;
            wait = (struct timespec){.tv_sec = (time_t)(left / 1000000000u), .tv_nsec = (long)(left % 1000000000u)};
            timeout = &wait;
        }
        struct epoll_event ready[EVENTS_AT_ONCE];
        struct connection *closed[EVENTS_AT_ONCE];
        int closed_count = 0;
        int count = epoll_pwait2(poller, ready, EVENTS_AT_ONCE, timeout, NULL);
        for (int i = 0; i < count; i++) {
            struct connection *c = ready[i].data.ptr;
            if (!c) {
                accept_all(listener);
                continue;
            }
            if (ready[i].events & EPOLLOUT && c->unsent_size)
                send_unsent(c);
            if (c->fd >= 0 && ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                read_input(c);
            if (c->fd < 0)
                closed[closed_count++] = c;
        }
        free_closed(closed, closed_count);
        uint64_t now = now_ns();
        while (heap_size && heap[0]->due <= now) {
            struct connection *c = heap[0];
            unschedule(c);
            emit(c, now);
            if (c->fd < 0)
                free_closed(&c, 1);
        }
    }
}
