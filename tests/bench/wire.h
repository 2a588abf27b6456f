/* What the mock engine sends and the load generator expects, byte for byte. */
#ifndef WIRE_H
#define WIRE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* An event as vLLM writes one. Its content is the time it was sent at (ns of CLOCK_MONOTONIC) and its number, in hex. */
#define EVENT_BEFORE                                                                                               \
    "data: {\"id\":\"chatcmpl-8d1f0b6c5e9a4f3db27c40a1e6f9d385\",\"object\":\"chat.completion.chunk\","            \
    "\"created\":1760000000,\"model\":\"DeepSeek-R1-Distill-Qwen-1.5B\",\"choices\":[{\"index\":0,\"delta\":"      \
    "{\"content\":\""
#define EVENT_AFTER "\"},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}]}\n\n"
#define LAST_EVENT "data: [DONE]\n\n"

enum {
    STAMP_DIGITS = 16,
    NUMBER_DIGITS = 8,
    STAMP_AT = sizeof(EVENT_BEFORE) - 1,
    NUMBER_AT = STAMP_AT + STAMP_DIGITS,
    AFTER_AT = NUMBER_AT + NUMBER_DIGITS,
    EVENT_SIZE = AFTER_AT + sizeof(EVENT_AFTER) - 1,
    LAST_EVENT_SIZE = sizeof(LAST_EVENT) - 1,
};

/* A plain answer, and a request's body, of any size from about 200 bytes up. */
#define ANSWER_BEFORE                                                                                              \
    "{\"id\":\"chatcmpl-8d1f0b6c5e9a4f3db27c40a1e6f9d385\",\"object\":\"chat.completion\",\"choices\":[{\"index\":0," \
    "\"message\":{\"role\":\"assistant\",\"content\":\""
#define ANSWER_AFTER "\"},\"finish_reason\":\"stop\"}]}"
#define REQUEST_BEFORE                                                                                             \
    "{\"model\":\"DeepSeek-R1-Distill-Qwen-1.5B\",\"temperature\":0.7,\"messages\":[{\"role\":\"user\",\"content\":\""
#define REQUEST_AFTER "\"}]}"

static inline uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void put_hex(char *to, uint64_t value, int digits)
{
    while (digits--) {
        to[digits] = "0123456789abcdef"[value & 15];
        value >>= 4;
    }
}

static inline int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The value of *digits* hex digits; all ones if one is none. */
static inline uint64_t get_hex(const char *from, int digits)
{
    uint64_t value = 0;
    for (int i = 0; i < digits; i++) {
        int digit = hex_digit(from[i]);
        if (digit < 0)
            return UINT64_MAX;
        value = value << 4 | (uint64_t)digit;
    }
    return value;
}

/* *size* bytes: *before*, a text that differs at every position (a lost or doubled block shows), *after*. */
static inline char *make_body(size_t size, const char *before, const char *after)
{
    size_t head = strlen(before), tail = strlen(after);
    if (size < head + tail)
        size = head + tail;
    char *body = malloc(size + 1);
    if (!body)
        abort();
    memcpy(body, before, head);
    uint64_t state = 88172645463325252u;
    for (size_t i = head; i < size - tail; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        body[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[state & 63];
    }
    memcpy(body + size - tail, after, tail + 1);
    return body;
}

#endif
