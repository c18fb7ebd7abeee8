/* What a board runs: its functions by name, and the loop that keeps them on the bus.
 *
 *     forage-board HOST PORT NAME [LABEL=VALUE …]
 *
 * On a board the settings come from flash, `adc` and `blink` from its pins. */
#include "forage_device.h"
#include "forage_port.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHANNELS 4
#define BACK_AFTER_MS 500
#define BACK_AFTER_MS_MAX 30000

/* -- the functions -------------------------------------------------------------------------------- */

/* adc(channel): a reading of 16 bits. */
static enum forage_step adc(struct forage_call *call)
{
    int32_t channel;
    char text[80];

    if (!forage_argument_int(call, 0, "channel", &channel))
        return forage_fail(call, "TypeError", "adc: takes a channel, an integer");
    if (channel < 0 || channel >= CHANNELS) {
        snprintf(text, sizeof text, "adc: there is no channel %" PRId32 ", only 0 to %d", channel,
                 CHANNELS - 1);
        return forage_fail(call, "ValueError", text);
    }
    cbor_put_int(&call->result, 1000 * channel + 7); /* A board reads its converter here. */
    return FORAGE_DONE;
}

/* blink(times, ms=100): takes long, so it does a little and asks to be called again. */
static enum forage_step blink(struct forage_call *call)
{
    int32_t times, ms = 100;

    if (!forage_argument_int(call, 0, "times", &times))
        return forage_fail(call, "TypeError", "blink: takes a number of times");
    forage_argument_int(call, 1, "ms", &ms);
    if (ms < 0 || call->step >= 2 * (int64_t)times) {
        cbor_put_int(&call->result, times);
        return FORAGE_DONE;
    }
    call->wait_ms = (uint32_t)ms; /* A board sets its pin to `call->step % 2 == 0` here. */
    return FORAGE_AGAIN;
}

static const struct forage_named functions[] = {{"lab.board.adc", adc}, {"lab.board.blink", blink}};

/* -- the loop ------------------------------------------------------------------------------------- */

static struct forage_device device;

static uint64_t now_ms(void) { return port_now_us() / 1000; }

static uint64_t now_us(void *context)
{
    (void)context;
    return port_now_us();
}

static void publish(void *context, const char *topic, const uint8_t *payload, size_t length, int qos,
                    bool retain)
{
    (void)context;
    port_publish(topic, payload, length, qos, retain);
}

static void note(void *context, const char *text)
{
    (void)context;
    port_print(text);
}

static void inbox(const uint8_t *payload, size_t length)
{
    forage_inbox(&device, payload, length, now_ms());
}

static void random_hex(char *to, size_t bytes)
{
    uint8_t drawn[8];

    port_random(drawn, bytes);
    for (size_t i = 0; i < bytes; i++)
        snprintf(to + 2 * i, 3, "%02x", drawn[i]);
}

static bool connect_as(const struct forage_settings *settings, const char *session, const char *host,
                       int port)
{
    char will_topic[FORAGE_TOPIC_BYTES_MAX], inbox_topic[FORAGE_TOPIC_BYTES_MAX], will[96];
    char client_id[FORAGE_NAME_BYTES_MAX + 16], text[96], drawn[17];

    /* Nobody can guess the id, so nobody can take this connection over. */
    random_hex(drawn, 6);
    snprintf(client_id, sizeof client_id, "%s-%s", settings->name, drawn);
    forage_will(&device, session, will_topic, will, sizeof will);
    forage_inbox_topic(&device, inbox_topic);
    struct port_connection connection = {.host = host,
                                         .port = port,
                                         .client_id = client_id,
                                         .will_topic = will_topic,
                                         .will = will,
                                         .inbox_topic = inbox_topic};
    if (!port_connect(&connection, inbox))
        return false;
    snprintf(text, sizeof text, "connected as %s %s", settings->name, session);
    port_print(text);
    forage_connected(&device, session);
    return true;
}

static void wait_at_random(unsigned failures)
{
    uint8_t drawn;
    uint64_t limit = BACK_AFTER_MS << (failures > 6 ? 6 : failures);

    port_random(&drawn, 1);
    limit = limit > BACK_AFTER_MS_MAX ? BACK_AFTER_MS_MAX : limit;
    /* A call that runs goes on meanwhile. */
    for (uint64_t end = now_ms() + limit * drawn / 255; now_ms() < end;) {
        uint32_t wait = forage_poll(&device, now_ms());
        port_sleep(wait < 50 ? wait : 50);
    }
}

static void run(const struct forage_settings *settings, const char *host, int port)
{
    char start[17], session[FORAGE_SESSION_BYTES_MAX];
    unsigned failures = 0;

    random_hex(start, 8);
    for (uint32_t connections = 1; !*device.refused; connections++) {
        snprintf(session, sizeof session, "%s-%" PRIu32, start, connections);
        failures++;
        if (connect_as(settings, session, host, port)) {
            failures = 0;
            while (!*device.refused && port_wait(forage_poll(&device, now_ms()))) {
            }
        }
        port_print("no connection");
        forage_disconnected(&device);
        port_disconnect();
        wait_at_random(failures);
    }
    char text[sizeof device.refused + 16];
    snprintf(text, sizeof text, "refused: %s", device.refused);
    port_print(text);
}

/* The labels as JSON; false where they do not fit, or need more than plain letters. */
static bool read_labels(int count, char **given, char *into, size_t size)
{
    size_t used = (size_t)snprintf(into, size, "{");

    for (int i = 0; i < count && used < size; i++) {
        const char *is = strchr(given[i], '=');
        if (!is || strpbrk(given[i], "\"\\"))
            return false;
        used += (size_t)snprintf(into + used, size - used, "%s\"%.*s\":\"%s\"", i ? "," : "",
                                 (int)(is - given[i]), given[i], is + 1);
    }
    if (used < size)
        used += (size_t)snprintf(into + used, size - used, "}");
    return used < size;
}

int main(int count, char **arguments)
{
    char labels[256];
    struct forage_settings settings = {.root = "forage",
                                       .version = "1",
                                       .functions = functions,
                                       .functions_count = sizeof functions / sizeof *functions,
                                       .publish = publish,
                                       .now_us = now_us,
                                       .note = note};

    if (count < 4 || !read_labels(count - 4, arguments + 4, labels, sizeof labels)) {
        fprintf(stderr, "usage: %s HOST PORT NAME [LABEL=VALUE ...]\n", arguments[0]);
        return 2;
    }
    settings.name = arguments[3];
    settings.labels = labels;
    if (!forage_init(&device, &settings)) {
        fprintf(stderr, "The name or the labels are too long.\n");
        return 2;
    }
    run(&settings, arguments[1], atoi(arguments[2]));
    return 2;
}
