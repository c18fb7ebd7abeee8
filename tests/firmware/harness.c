/* A device of the C client without a network: orders on stdin, publishes on stdout, as harness.py. */
#include "forage_device.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum forage_step blink(struct forage_call *call)
{
    int32_t times;
    char text[64];

    if (!forage_argument_int(call, 0, "times", &times))
        return forage_fail(call, "TypeError", "blink: takes a number of times");
    if (times < 0) {
        snprintf(text, sizeof text, "blink: %" PRId32 " is no number of times.", times);
        return forage_fail(call, "", text);
    }
    cbor_put_bool(&call->result, true);
    return FORAGE_DONE;
}

static enum forage_step wait(struct forage_call *call)
{
    int32_t ms;

    if (!forage_argument_int(call, 0, "ms", &ms))
        return forage_fail(call, "TypeError", "wait: takes milliseconds");
    if (call->step) {
        cbor_put_int(&call->result, ms);
        return FORAGE_DONE;
    }
    call->wait_ms = (uint32_t)ms;
    return FORAGE_AGAIN;
}

static enum forage_step echo(struct forage_call *call)
{
    struct cbor_reader value, end;

    if (!forage_argument(call, 0, "value", &value))
        return forage_fail(call, "TypeError", "echo: takes a value");
    end = value;
    cbor_skip(&end);
    cbor_put_raw(&call->result, value.at, (size_t)(end.at - value.at));
    return FORAGE_DONE;
}

static enum forage_step text(struct forage_call *call)
{
    int32_t characters;
    static char x[8192];

    if (!forage_argument_int(call, 0, "characters", &characters) || characters < 0 ||
        (size_t)characters >= sizeof x)
        return forage_fail(call, "TypeError", "text: takes a number of characters");
    memset(x, 'x', (size_t)characters);
    x[characters] = 0;
    cbor_put_text(&call->result, x);
    return FORAGE_DONE;
}

static const struct forage_named functions[] = {
    {"org.example.blink", blink}, {"lab.wait", wait}, {"lab.echo", echo}, {"lab.text", text}};

static void publish(void *context, const char *topic, const uint8_t *payload, size_t length, int qos,
                    bool retain)
{
    (void)context;
    printf("publish %s %d %d ", topic, qos, retain);
    for (size_t i = 0; i < length; i++)
        printf("%02x", payload[i]);
    printf("\n");
}

static uint64_t now_us(void *context) { return *(uint64_t *)context * 1000; }

static void note(void *context, const char *line)
{
    (void)context;
    printf("note %s\n", line);
}

int main(void)
{
    static char order[65536];
    static struct forage_device device;
    uint64_t now_ms = 0;
    struct forage_settings settings = {.name = "lamp-1",
                                       .root = "forage",
                                       .version = "1",
                                       .labels = "{}",
                                       .functions = functions,
                                       .functions_count = sizeof functions / sizeof *functions,
                                       .publish = publish,
                                       .now_us = now_us,
                                       .note = note,
                                       .context = &now_ms};

    if (!forage_init(&device, &settings))
        return 1;
    while (fgets(order, sizeof order, stdin)) {
        char *word = strtok(order, " \n"), *rest = strtok(NULL, " \n");
        if (!strcmp(word, "connect")) {
            forage_connected(&device, rest);
        } else if (!strcmp(word, "disconnect")) {
            forage_disconnected(&device);
        } else if (!strcmp(word, "at")) {
            now_ms = strtoull(rest, NULL, 10);
        } else if (!strcmp(word, "inbox")) {
            /* Memory of just this length, so that a byte too far is noticed. */
            size_t length = rest ? strlen(rest) / 2 : 0;
            uint8_t *payload = malloc(length ? length : 1);
            for (size_t i = 0; i < length; i++) {
                char pair[3] = {rest[2 * i], rest[2 * i + 1], 0};
                payload[i] = (uint8_t)strtoul(pair, NULL, 16);
            }
            forage_inbox(&device, payload, length, now_ms);
            free(payload);
        } else {
            printf("ok %" PRIu32 "\n", forage_poll(&device, now_ms));
            fflush(stdout);
            continue;
        }
        printf("ok\n");
        fflush(stdout);
    }
    return 0;
}
