/* What a device decides; the header says how to use it, the README in the folder above why. */
#include "forage_device.h"

#include <stdio.h>
#include <string.h>

#define ENVELOPE_NESTING_MAX 5
#define ARGUMENTS_NESTING_MAX 6 /* Values of four arrays and maps, in those around them. */
#define ENVELOPE_BYTES 512      /* What a message needs around an outcome's data. */
#define REPEAT_AFTER_MS 1000
#define REPEAT_AFTER_MS_MAX 8000

static void introduce(struct forage_device *device);

/* -- reading fields ------------------------------------------------------------------------------- */

/* A number of up to 63 bits; false where there is another thing. */
static bool get_count(struct cbor_reader map, const char *key, uint64_t *value)
{
    struct cbor_reader at;

    if (!cbor_find(map, key, &at))
        return true; /* It keeps its default. */
    struct cbor_item item = cbor_read(&at);
    *value = item.value;
    return item.kind == CBOR_UINT && !(item.value >> 63);
}

static bool get_text(struct cbor_reader map, const char *key, char *into, size_t size)
{
    struct cbor_reader at;

    if (!cbor_find(map, key, &at))
        return false;
    struct cbor_item item = cbor_read(&at);
    if (item.kind != CBOR_TEXT || item.value >= size || memchr(item.data, 0, (size_t)item.value))
        return false;
    memcpy(into, item.data, (size_t)item.value);
    into[item.value] = 0;
    return true;
}

/* A name, which goes into a topic: other letters would mean something there. */
static bool get_name(struct cbor_reader map, const char *key, char *into)
{
    if (!get_text(map, key, into, FORAGE_NAME_BYTES_MAX) || !*into)
        return false;
    return strspn(into, "abcdefghijklmnopqrstuvwxyz0123456789_-") == strlen(into);
}

static bool get_bytes(struct cbor_reader map, const char *key, struct cbor_reader *bytes)
{
    struct cbor_reader at;

    if (!cbor_find(map, key, &at))
        return false;
    struct cbor_item item = cbor_read(&at);
    if (item.kind != CBOR_BYTES)
        return false;
    bytes->at = item.data;
    bytes->end = item.data + item.value;
    return true;
}

static bool is_true(struct cbor_reader map, const char *key)
{
    struct cbor_reader at;
    return cbor_find(map, key, &at) && cbor_read(&at).kind == CBOR_TRUE;
}

/* Whether the list of rows (or of numbers) at a key names our assignment. */
static bool names_ours(const struct forage_device *device, struct cbor_reader map, const char *key)
{
    struct cbor_reader at;

    if (device->state == FORAGE_FREE || !cbor_find(map, key, &at))
        return false;
    struct cbor_item list = cbor_read(&at);
    if (list.kind != CBOR_ARRAY)
        return false;
    for (uint64_t i = 0; i < list.value; i++) {
        struct cbor_reader inside = at;
        struct cbor_item item = cbor_read(&inside);
        if (item.kind == CBOR_ARRAY && item.value)
            item = cbor_read(&inside);
        if (item.kind == CBOR_UINT && item.value == device->assignment)
            return true;
        cbor_skip(&at);
    }
    return false;
}

/* -- sending -------------------------------------------------------------------------------------- */

static void publish(struct forage_device *device, const char *topic, const uint8_t *payload,
                    size_t length, int qos, bool retain)
{
    device->settings->publish(device->settings->context, topic, payload, length, qos, retain);
}

static void leaf_topic(const struct forage_device *device, const char *branch, const char *leaf,
                       char *topic)
{
    snprintf(topic, FORAGE_TOPIC_BYTES_MAX, "%s/1/%s/%s%s", device->settings->root, branch,
             device->settings->name, leaf);
}

void forage_inbox_topic(const struct forage_device *device, char topic[FORAGE_TOPIC_BYTES_MAX])
{
    leaf_topic(device, "inbox", "", topic);
}

/* The fields that all messages have; `more` others follow. */
static void put_stamps(struct forage_device *device, struct cbor_writer *to, const char *type,
                       uint64_t n, unsigned more)
{
    cbor_put_map(to, 4u + (n ? 1 : 0) + more);
    cbor_put_text(to, "t");
    cbor_put_text(to, type);
    cbor_put_text(to, "s");
    cbor_put_text(to, device->session);
    cbor_put_text(to, "c");
    cbor_put_text(to, device->controller);
    if (n) {
        cbor_put_text(to, "n");
        cbor_put_uint(to, n);
    }
    cbor_put_text(to, "q");
    cbor_put_uint(to, device->received);
}

static void send_outbox(struct forage_device *device, const uint8_t *bytes, size_t length, int qos)
{
    char topic[FORAGE_TOPIC_BYTES_MAX];

    leaf_topic(device, "outbox", "", topic);
    publish(device, topic, bytes, length, qos, false);
}

static void send_unseen(struct forage_device *device, const struct forage_unseen *item)
{
    if (item->is_outcome)
        publish(device, device->topic, device->outcome + device->outcome_begin,
                device->outcome_end - device->outcome_begin, 1, false);
    else
        send_outbox(device, item->bytes, item->length, 1);
}

/* The place of the next numbered message; NULL where nobody would hear it, or there is no room. (What
 * matters is said again on the next link, or when the controller asks.) */
static struct forage_unseen *next_unseen(struct forage_device *device, uint64_t now_ms)
{
    if (!*device->session || !*device->controller || device->unseen_count == FORAGE_UNSEEN_SLOTS)
        return NULL;
    if (!device->unseen_count) {
        device->repeat_after_ms = REPEAT_AFTER_MS;
        device->repeat_at_ms = now_ms + REPEAT_AFTER_MS;
    }
    struct forage_unseen *item = &device->unseen[device->unseen_count++];
    item->n = ++device->sent;
    item->said_seen = device->received;
    item->is_outcome = false;
    return item;
}

static struct cbor_writer small(struct forage_unseen *item)
{
    return (struct cbor_writer){item->bytes, item->bytes + sizeof item->bytes, false};
}

static void put_inventory(struct forage_device *device, struct forage_unseen *item)
{
    struct cbor_writer to = small(item);

    put_stamps(device, &to, "device-inventory", item->n, 2);
    cbor_put_text(&to, "rc");
    cbor_put_uint(&to, device->received);
    cbor_put_text(&to, "r");
    cbor_put_array(&to, device->state == FORAGE_FREE ? 0 : 1);
    if (device->state != FORAGE_FREE) {
        cbor_put_array(&to, 5);
        cbor_put_uint(&to, device->assignment);
        cbor_put_text(&to, device->task);
        cbor_put_uint(&to, device->low);
        cbor_put_uint(&to, device->low + 1);
        cbor_put_text(&to, device->state == FORAGE_RUNNING ? "running" : "unacknowledged");
    }
    item->length = (uint16_t)(to.at - item->bytes);
}

static void say_inventory(struct forage_device *device, uint64_t now_ms)
{
    struct forage_unseen *item = next_unseen(device, now_ms);

    if (!item)
        return;
    put_inventory(device, item);
    send_unseen(device, item);
}

static void say_outcome(struct forage_device *device, uint64_t now_ms)
{
    uint8_t bytes[FORAGE_PREFIX_BYTES_MAX];
    struct cbor_writer to = {bytes, bytes + sizeof bytes, false};
    struct forage_unseen *item;

    if (device->state != FORAGE_KEPT || !(item = next_unseen(device, now_ms)))
        return;
    put_stamps(device, &to, "outcomes", item->n, 1);
    cbor_put_text(&to, "o");
    size_t length = (size_t)(to.at - bytes);
    device->outcome_begin = FORAGE_PREFIX_BYTES_MAX - length;
    memcpy(device->outcome + device->outcome_begin, bytes, length);
    item->is_outcome = true;
    send_unseen(device, item);
}

static void refuse(struct forage_device *device, uint64_t assignment, const char *reason,
                   uint64_t now_ms)
{
    struct forage_unseen *item = next_unseen(device, now_ms);

    if (!item)
        return;
    struct cbor_writer to = small(item);
    put_stamps(device, &to, "assignment-refused", item->n, 2);
    cbor_put_text(&to, "a");
    cbor_put_uint(&to, assignment);
    cbor_put_text(&to, "r");
    cbor_put_text(&to, reason);
    item->length = (uint16_t)(to.at - item->bytes);
    send_unseen(device, item);
}

static void say_trimmed(struct forage_device *device, uint64_t now_ms)
{
    struct forage_unseen *item = next_unseen(device, now_ms);

    if (!item)
        return;
    struct cbor_writer to = small(item);
    put_stamps(device, &to, "trimmed", item->n, 1);
    cbor_put_text(&to, "r");
    cbor_put_array(&to, 1);
    cbor_put_array(&to, 2);
    cbor_put_uint(&to, device->assignment);
    cbor_put_uint(&to, device->low + 1);
    item->length = (uint16_t)(to.at - item->bytes);
    send_unseen(device, item);
}

static void say_seen(struct forage_device *device)
{
    uint8_t bytes[FORAGE_SMALL_BYTES_MAX];
    struct cbor_writer to = {bytes, bytes + sizeof bytes, false};

    put_stamps(device, &to, "seen", 0, 0);
    send_outbox(device, bytes, (size_t)(to.at - bytes), 1);
}

/* Nothing is kept any more. An outcome that was said and not seen has a number that must come: what
 * comes under it now is that there is nothing. */
static void forget(struct forage_device *device)
{
    device->state = FORAGE_FREE;
    for (unsigned i = 0; i < device->unseen_count; i++)
        if (device->unseen[i].is_outcome) {
            device->unseen[i].is_outcome = false;
            device->unseen[i].said_seen = device->received;
            put_inventory(device, &device->unseen[i]);
        }
}

/* -- who we are ----------------------------------------------------------------------------------- */

static void new_link(struct forage_device *device, const char *controller, uint64_t base)
{
    snprintf(device->controller, sizeof device->controller, "%s", controller);
    device->sent = device->received = base;
    device->unseen_count = 0;
}

/* The capabilities as JSON; false where they are too long. */
static bool write_capabilities(struct forage_device *device)
{
    const struct forage_settings *settings = device->settings;
    char *to = device->document;
    size_t room = sizeof device->document;
    int used = snprintf(to, room,
                        "{\"session\":\"%s\",\"slots\":1,\"profile\":\"mcu\",\"packet_bytes_max\":%d,"
                        "\"queue_bytes_max\":%d,\"labels\":%s,\"functions\":{",
                        device->session, FORAGE_PACKET_BYTES_MAX, FORAGE_ARGUMENTS_BYTES_MAX,
                        settings->labels);

    for (size_t i = 0; i < settings->functions_count && used >= 0 && (size_t)used < room; i++)
        used += snprintf(to + used, room - (size_t)used, "%s\"%s\":\"%s\"", i ? "," : "",
                         settings->functions[i].name, settings->version);
    if (used >= 0 && (size_t)used < room)
        used += snprintf(to + used, room - (size_t)used, "}}");
    return used >= 0 && (size_t)used < room;
}

bool forage_init(struct forage_device *device, const struct forage_settings *settings)
{
    memset(device, 0, sizeof *device);
    device->settings = settings;
    memset(device->session, 'f', sizeof device->session - 1); /* As long as any. */
    bool fits = write_capabilities(device) && strlen(settings->name) < FORAGE_NAME_BYTES_MAX &&
                strlen(settings->root) < FORAGE_NAME_BYTES_MAX;
    device->session[0] = 0;
    return fits;
}

void forage_will(const struct forage_device *device, const char *session,
                 char topic[FORAGE_TOPIC_BYTES_MAX], char *document, size_t size)
{
    leaf_topic(device, "device", "/presence", topic);
    snprintf(document, size, "{\"state\":\"lost\",\"session\":\"%s\"}", session);
}

static void introduce(struct forage_device *device)
{
    char topic[FORAGE_TOPIC_BYTES_MAX];

    leaf_topic(device, "device", "/presence", topic);
    int length = snprintf(device->document, sizeof device->document,
                          "{\"state\":\"%s\",\"session\":\"%s\"}",
                          device->is_draining ? "draining" : "online", device->session);
    publish(device, topic, (uint8_t *)device->document, (size_t)length, 1, true);
    leaf_topic(device, "device", "/capabilities", topic);
    write_capabilities(device);
    publish(device, topic, (uint8_t *)device->document, strlen(device->document), 1, true);
}

void forage_connected(struct forage_device *device, const char *session)
{
    snprintf(device->session, sizeof device->session, "%s", session);
    new_link(device, "", 0);
    introduce(device);
}

void forage_disconnected(struct forage_device *device)
{
    device->session[0] = 0;
    device->unseen_count = 0;
}

/* -- a call --------------------------------------------------------------------------------------- */

bool forage_argument(const struct forage_call *call, unsigned position, const char *name,
                     struct cbor_reader *value)
{
    struct cbor_reader at = call->arguments;

    if (cbor_read(&at).value > position) {
        while (position--)
            cbor_skip(&at);
        *value = at;
        return true;
    }
    return cbor_find(call->keywords, name, value);
}

bool forage_argument_int(const struct forage_call *call, unsigned position, const char *name,
                         int32_t *value)
{
    struct cbor_reader at;

    if (!forage_argument(call, position, name, &at))
        return false;
    struct cbor_item item = cbor_read(&at);
    if ((item.kind != CBOR_UINT && item.kind != CBOR_NEGATIVE) || item.value > INT32_MAX)
        return false;
    *value = item.kind == CBOR_UINT ? (int32_t)item.value : -1 - (int32_t)item.value;
    return true;
}

enum forage_step forage_fail(struct forage_call *call, const char *type, const char *text)
{
    call->error_type = type;
    snprintf(call->error_text, sizeof call->error_text, "%s", text);
    return FORAGE_FAILED;
}

/* Write the outcome down and say it. `item` is a value's or an error's CBOR, `code` the error's. */
static void finish(struct forage_device *device, const uint8_t *item, size_t length, const char *code,
                   uint64_t now_ms)
{
    const struct forage_settings *settings = device->settings;
    struct cbor_writer to = {device->outcome + FORAGE_PREFIX_BYTES_MAX,
                             device->outcome + sizeof device->outcome, false};
    bool is_final = device->is_last_try || (code && !strcmp(code, "cancelled"));
    uint8_t data[FORAGE_RESULT_BYTES_MAX + 2];
    struct cbor_writer around = {data, data + sizeof data, false};

    cbor_put_array(&around, 1);
    if (!code)
        cbor_put_array(&around, 1);
    cbor_put_raw(&around, item, length);
    cbor_put_array(&to, 1);
    cbor_put_map(&to, 7u + (device->low ? 1 : 0) + (code ? 1 : 0));
    cbor_put_text(&to, "k");
    cbor_put_text(&to, device->task);
    cbor_put_text(&to, "a");
    cbor_put_uint(&to, device->assignment);
    if (device->low) {
        cbor_put_text(&to, "l");
        cbor_put_uint(&to, device->low);
    }
    cbor_put_text(&to, "u");
    cbor_put_uint(&to, device->low + 1);
    cbor_put_text(&to, "g");
    cbor_put_bytes(&to, device->tag, sizeof device->tag);
    cbor_put_text(&to, "r");
    cbor_put_array(&to, 1);
    cbor_put_array(&to, 2);
    cbor_put_uint(&to, device->low);
    cbor_put_uint(&to, device->low + 1);
    if (code) {
        cbor_put_text(&to, "x");
        cbor_put_array(&to, 1);
        cbor_put_array(&to, 3);
        cbor_put_uint(&to, device->low);
        cbor_put_text(&to, code);
        cbor_put_bool(&to, is_final);
    }
    cbor_put_text(&to, "us");
    cbor_put_uint(&to, settings->now_us(settings->context) - device->started_us);
    cbor_put_text(&to, "d");
    cbor_put_bytes(&to, data, (size_t)(around.at - data));
    device->outcome_end = (size_t)(to.at - device->outcome);
    device->state = FORAGE_KEPT;
    say_outcome(device, now_ms);
}

/* An error map: {"reason": …, "message": …}, or a Python exception's with type and arguments. */
static void fail(struct forage_device *device, const char *reason, const char *type, const char *text,
                 const char *code, uint64_t now_ms)
{
    struct cbor_writer to = {device->result, device->result + sizeof device->result, false};

    cbor_put_map(&to, type ? 4 : 2);
    if (type) {
        cbor_put_text(&to, "type");
        cbor_put_text(&to, type);
        cbor_put_text(&to, "module");
        cbor_put_text(&to, "builtins");
        cbor_put_text(&to, "args");
        cbor_put_array(&to, 1);
        cbor_put_array(&to, 1);
        cbor_put_text(&to, text);
    } else {
        cbor_put_text(&to, "reason");
        cbor_put_text(&to, reason);
    }
    cbor_put_text(&to, "message");
    cbor_put_text(&to, text);
    finish(device, device->result, (size_t)(to.at - device->result), code, now_ms);
}

static void go_on(struct forage_device *device, uint64_t now_ms)
{
    struct forage_call *call = &device->call;

    switch (device->function(call)) {
    case FORAGE_AGAIN:
        call->step++;
        device->step_at_ms = now_ms + call->wait_ms;
        return;
    case FORAGE_FAILED:
        fail(device, "refused", call->error_type && *call->error_type ? call->error_type : NULL,
             call->error_text, "error", now_ms);
        return;
    case FORAGE_DONE:
        break;
    }
    size_t length = (size_t)(call->result.at - device->result);
    if (call->result.is_full || length + ENVELOPE_BYTES > device->packet_bytes_max || !cbor_valid(device->result, length, 4, true))
        fail(device, "not-serializable", NULL,
             "The function gave more than a packet holds, or no plain value.", "error", now_ms);
    else
        finish(device, device->result, length, NULL, now_ms);
}

static forage_function find_function(const struct forage_device *device, struct cbor_reader header)
{
    const struct forage_settings *settings = device->settings;
    struct cbor_reader at;

    if (!cbor_find(header, "f", &at))
        return NULL;
    struct cbor_item pair = cbor_read(&at);
    if (pair.kind != CBOR_ARRAY || pair.value != 2)
        return NULL;
    struct cbor_item name = cbor_read(&at), version = cbor_read(&at);
    if (!cbor_is_text(&version, "") && !cbor_is_text(&version, settings->version))
        return NULL;
    for (size_t i = 0; i < settings->functions_count; i++)
        if (cbor_is_text(&name, settings->functions[i].name))
            return settings->functions[i].run;
    return NULL;
}

/* Keep what is needed of an assignment; false where a field is wrong. */
static bool accept(struct forage_device *device, struct cbor_reader given, struct cbor_reader header,
                   uint64_t number, uint64_t now_ms)
{
    char user[FORAGE_NAME_BYTES_MAX], client[FORAGE_NAME_BYTES_MAX];
    uint64_t low = 0, beat_ms = 0, tries = 0, retries = 0, timeout_ms = 0;
    uint64_t packet_bytes_max = FORAGE_PACKET_BYTES_MAX;
    struct cbor_reader tag, options;

    if (!get_name(header, "u", user) || !get_name(header, "c", client) ||
        !get_name(header, "t", device->task) || !get_bytes(given, "g", &tag) ||
        tag.end - tag.at != sizeof device->tag || !get_count(given, "l", &low) ||
        !get_count(given, "b", &beat_ms) || !get_count(given, "tr", &tries) ||
        !get_count(header, "m", &packet_bytes_max))
        return false;
    if (cbor_find(header, "o", &options) &&
        (!get_count(options, "re", &retries) || !get_count(options, "to", &timeout_ms)))
        return false;
    memcpy(device->tag, tag.at, sizeof device->tag);
    snprintf(device->topic, sizeof device->topic, "%s/1/task/%s/%s/%s/%s", device->settings->root, user,
             client, device->task, device->settings->name);
    device->assignment = number;
    device->low = low;
    device->is_last_try = tries >= retries;
    device->timeout_ms = timeout_ms;
    device->packet_bytes_max = packet_bytes_max;
    device->beat_ms = beat_ms < 20 ? 10 : beat_ms > 60000 ? 30000 : (uint32_t)beat_ms / 2;
    device->since_ms = now_ms;
    device->beat_at_ms = now_ms + device->beat_ms;
    device->state = FORAGE_RUNNING;
    return true;
}

/* Find the arguments in an assignment's calls: an array of one byte string, which holds
 * [0, [arguments]] or [0, [arguments], {keyword: argument}]. */
static bool read_arguments(struct forage_device *device, struct cbor_reader calls)
{
    struct forage_call *call = &device->call;

    if (!cbor_valid(calls.at, (size_t)(calls.end - calls.at), ENVELOPE_NESTING_MAX, false))
        return false;
    struct cbor_item list = cbor_read(&calls);
    if (list.kind != CBOR_ARRAY || list.value != 1)
        return false;
    struct cbor_item body = cbor_read(&calls);
    if (body.kind != CBOR_BYTES || body.value > sizeof device->arguments)
        return false;
    size_t length = (size_t)body.value;
    if (length)
        memcpy(device->arguments, body.data, length);
    if (!cbor_valid(device->arguments, length, ARGUMENTS_NESTING_MAX, true))
        return false;
    struct cbor_reader at = {device->arguments, device->arguments + length};
    struct cbor_item parts = cbor_read(&at);
    if (parts.kind != CBOR_ARRAY || parts.value < 2 || parts.value > 3)
        return false;
    struct cbor_item kind = cbor_read(&at);
    if (kind.kind != CBOR_UINT || kind.value)
        return false;
    call->arguments = call->keywords = at;
    if (cbor_read(&call->keywords).kind != CBOR_ARRAY)
        return false;
    call->keywords = at;
    cbor_skip(&call->keywords);
    struct cbor_reader keywords = call->keywords;
    return parts.value == 2 || cbor_read(&keywords).kind == CBOR_MAP;
}

static void begin(struct forage_device *device, forage_function function, struct cbor_reader calls,
                  uint64_t now_ms)
{
    const struct forage_settings *settings = device->settings;
    struct forage_call *call = &device->call;
    char text[96];

    memset(call, 0, sizeof *call);
    device->started_us = settings->now_us(settings->context);
    if (!read_arguments(device, calls)) {
        snprintf(text, sizeof text, "%s takes plain values only: no tuples, sets or objects.",
                 settings->name);
        fail(device, "not-serializable", NULL, text, "error", now_ms);
        return;
    }
    snprintf(text, sizeof text, "runs %s %llu", device->task, (unsigned long long)device->low);
    settings->note(settings->context, text);
    call->result = (struct cbor_writer){device->result, device->result + sizeof device->result, false};
    device->function = function;
    go_on(device, now_ms);
}

static bool is_outcome_unseen(const struct forage_device *device)
{
    for (unsigned i = 0; i < device->unseen_count; i++)
        if (device->unseen[i].is_outcome)
            return true;
    return false;
}

static void on_assignment(struct forage_device *device, struct cbor_reader given, uint64_t now_ms)
{
    struct cbor_reader at, header, calls;
    uint64_t low = 0, high = 0;
    const char *reason = NULL;

    if (!cbor_find(given, "a", &at))
        return;
    struct cbor_item number = cbor_read(&at);
    if (number.kind != CBOR_UINT || number.value >> 63)
        return;
    if (device->state != FORAGE_FREE && device->assignment == number.value) {
        if (!is_outcome_unseen(device))
            say_outcome(device, now_ms);
        return;
    }
    if (!get_bytes(given, "h", &header) || !get_bytes(given, "c", &calls) ||
        !get_count(given, "l", &low) || !get_count(given, "u", &high) ||
        !cbor_valid(header.at, (size_t)(header.end - header.at), ENVELOPE_NESTING_MAX, false))
        return;
    forage_function function = find_function(device, header);
    if (device->is_draining)
        reason = "draining";
    else if (device->state != FORAGE_FREE)
        reason = "full";
    else if (!function)
        reason = "function";
    else if (high != low + 1 || calls.end - calls.at > FORAGE_ARGUMENTS_BYTES_MAX)
        reason = "size";
    if (reason)
        refuse(device, number.value, reason, now_ms);
    else if (accept(device, given, header, number.value, now_ms))
        begin(device, function, calls, now_ms);
}

/* -- receiving ------------------------------------------------------------------------------------ */

static void on_assign(struct forage_device *device, struct cbor_reader message, uint64_t now_ms)
{
    struct cbor_reader at;

    if (!cbor_find(message, "w", &at))
        return;
    struct cbor_item list = cbor_read(&at);
    /* One is what this profile gets; beyond what can be answered, the controller asks again. */
    for (uint64_t i = 0; list.kind == CBOR_ARRAY && i < list.value && i < 3; i++) {
        on_assignment(device, at, now_ms);
        cbor_skip(&at);
    }
}

static void handle(struct forage_device *device, const char *type, struct cbor_reader message,
                   bool is_new, uint64_t now_ms)
{
    struct cbor_reader at;

    if (!strcmp(type, "report") && !is_new) {
        introduce(device); /* It may have missed who this is: nothing else would ever tell it. */
        say_inventory(device, now_ms);
        if (!is_outcome_unseen(device))
            say_outcome(device, now_ms);
    } else if (!strcmp(type, "assign")) {
        on_assign(device, message, now_ms);
    } else if (!strcmp(type, "acknowledge")) {
        if (device->state == FORAGE_KEPT && names_ours(device, message, "r"))
            forget(device);
    } else if (!strcmp(type, "cancel-assigned")) {
        if (device->state == FORAGE_RUNNING && is_true(message, "f") && cbor_find(message, "a", &at) &&
            cbor_read(&at).value == device->assignment)
            fail(device, "cancelled", NULL, "The call was cancelled.", "cancelled", now_ms);
    } else if (!strcmp(type, "forget")) {
        if (names_ours(device, message, "a"))
            forget(device);
    } else if (!strcmp(type, "trim")) {
        if (names_ours(device, message, "r"))
            say_trimmed(device, now_ms);
    } else if (!strcmp(type, "drain")) {
        device->is_draining = is_true(message, "o");
        introduce(device);
    }
}

/* The counter in a session: its digits behind the hyphen. False where it is no session. */
static bool counter_of(const char *session, size_t *start_length, uint64_t *counter)
{
    const char *at = strchr(session, '-');

    if (!at || !at[1] || strspn(at + 1, "0123456789") != strlen(at + 1))
        return false;
    *start_length = (size_t)(at - session);
    for (*counter = 0, at++; *at; at++)
        *counter = *counter * 10 + (uint64_t)(*at - '0');
    return strlen(session) - *start_length <= 11;
}

static void refuse_epoch(struct forage_device *device, const char *controller)
{
    uint8_t bytes[FORAGE_SMALL_BYTES_MAX];
    struct cbor_writer to = {bytes, bytes + sizeof bytes, false};

    cbor_put_map(&to, 6);
    cbor_put_text(&to, "t");
    cbor_put_text(&to, "assignment-refused");
    cbor_put_text(&to, "s");
    cbor_put_text(&to, device->session);
    cbor_put_text(&to, "c");
    cbor_put_text(&to, controller);
    cbor_put_text(&to, "r");
    cbor_put_text(&to, "epoch");
    cbor_put_text(&to, "eb");
    cbor_put_uint(&to, device->epoch);
    cbor_put_text(&to, "ho");
    cbor_put_text(&to, device->holder);
    send_outbox(device, bytes, (size_t)(to.at - bytes), 1);
}

/* Whether a message is of a controller that this device does not (or no longer) obey. */
static bool is_stale(struct forage_device *device, const char *controller, uint64_t epoch)
{
    size_t start, held_start = 0;
    uint64_t counter, held = 0;

    if (!counter_of(controller, &start, &counter))
        return true;
    counter_of(device->holder, &held_start, &held);
    bool is_same_start = start == held_start && !strncmp(controller, device->holder, start);
    if (!epoch || epoch < device->epoch || (epoch == device->epoch && !is_same_start)) {
        refuse_epoch(device, controller);
        return true;
    }
    if (epoch == device->epoch && counter < held)
        return true;
    device->epoch = epoch;
    snprintf(device->holder, sizeof device->holder, "%s", controller);
    return false;
}

static void on_seen(struct forage_device *device, uint64_t seen, uint64_t now_ms)
{
    unsigned left = 0;

    for (unsigned i = 0; i < device->unseen_count; i++)
        if (device->unseen[i].n > seen)
            device->unseen[left++] = device->unseen[i];
    if (left < device->unseen_count) {
        device->repeat_after_ms = REPEAT_AFTER_MS;
        device->repeat_at_ms = now_ms + REPEAT_AFTER_MS;
    }
    device->unseen_count = left;
}

/* A message of the link that is ours, or of a new one: numbered, counted, answered. */
static void on_linked(struct forage_device *device, const char *type, struct cbor_reader message,
                      const char *controller, uint64_t n, uint64_t seen, uint64_t now_ms)
{
    uint64_t link = (n > seen ? n : seen) >> 32, ours = device->received >> 32;
    bool is_new = strcmp(controller, device->controller) || link > ours;

    if (!is_new && link < ours)
        return;
    if (is_new)
        new_link(device, controller, link << 32);
    on_seen(device, seen, now_ms);
    uint64_t sent = device->sent;
    bool is_next = n == device->received + 1;
    if (is_next && device->unseen_count >= FORAGE_UNSEEN_MAX)
        return; /* No room for an answer. */
    if (is_next)
        device->received = n;
    if (is_new) {
        say_inventory(device, now_ms);
        say_outcome(device, now_ms);
    }
    if (is_next) {
        handle(device, type, message, is_new, now_ms);
    } else if (n && n <= device->received && device->unseen_count && device->unseen[0].said_seen >= n) {
        /* A repeat, and what was said since then has not arrived: that says `seen` too. */
        send_unseen(device, &device->unseen[0]);
        return;
    }
    if (n && device->sent == sent)
        say_seen(device);
}

void forage_inbox(struct forage_device *device, const uint8_t *payload, size_t length, uint64_t now_ms)
{
    struct cbor_reader message = {payload, payload + length};
    char type[32], session[FORAGE_SESSION_BYTES_MAX], controller[FORAGE_SESSION_BYTES_MAX];
    uint64_t n = 0, seen = 0, epoch = 0;

    if (!*device->session || length > FORAGE_PACKET_BYTES_MAX ||
        !cbor_valid(payload, length, ENVELOPE_NESTING_MAX, false))
        return;
    if (!get_text(message, "s", session, sizeof session) || strcmp(session, device->session) ||
        !get_text(message, "c", controller, sizeof controller) || !get_count(message, "n", &n) ||
        !get_count(message, "q", &seen) || !get_count(message, "e", &epoch) || epoch >> 23)
        return;
    if (!get_text(message, "t", type, sizeof type)) {
        struct cbor_reader at;
        if (!cbor_find(message, "t", &at) || cbor_read(&at).kind != CBOR_TEXT)
            return;
        type[0] = 0; /* Longer than any that is known. */
    }
    if (is_stale(device, controller, epoch))
        return;
    if (!strcmp(type, "device-refused")) {
        /* It belongs to no link: the name is another's. */
        if (!get_text(message, "r", device->refused, sizeof device->refused))
            snprintf(device->refused, sizeof device->refused, "another device has this name");
        return;
    }
    on_linked(device, type, message, controller, n, seen, now_ms);
}

/* -- time ----------------------------------------------------------------------------------------- */

static void beat(struct forage_device *device)
{
    uint8_t bytes[48];
    struct cbor_writer to = {bytes, bytes + sizeof bytes, false};

    cbor_put_map(&to, 2);
    cbor_put_text(&to, "t");
    cbor_put_text(&to, "beat");
    cbor_put_text(&to, "s");
    cbor_put_text(&to, device->session);
    send_outbox(device, bytes, (size_t)(to.at - bytes), 0);
}

uint32_t forage_poll(struct forage_device *device, uint64_t now_ms)
{
    uint64_t due = now_ms + REPEAT_AFTER_MS;

    if (device->state == FORAGE_RUNNING && device->timeout_ms &&
        now_ms - device->since_ms >= device->timeout_ms)
        fail(device, "timeout", NULL, "The call ran longer than its limit.", "timeout", now_ms);
    if (device->state == FORAGE_RUNNING && now_ms >= device->step_at_ms)
        go_on(device, now_ms);
    if (*device->session && device->state != FORAGE_FREE) {
        if (now_ms >= device->beat_at_ms) {
            beat(device);
            device->beat_at_ms = now_ms + device->beat_ms;
        }
        due = device->beat_at_ms < due ? device->beat_at_ms : due;
    }
    if (*device->session && device->unseen_count) {
        if (now_ms >= device->repeat_at_ms) {
            send_unseen(device, &device->unseen[0]);
            device->repeat_after_ms *= 2;
            if (device->repeat_after_ms > REPEAT_AFTER_MS_MAX)
                device->repeat_after_ms = REPEAT_AFTER_MS_MAX;
            device->repeat_at_ms = now_ms + device->repeat_after_ms;
        }
        due = device->repeat_at_ms < due ? device->repeat_at_ms : due;
    }
    if (device->state == FORAGE_RUNNING)
        due = device->step_at_ms < due ? device->step_at_ms : due;
    return due > now_ms ? (uint32_t)(due - now_ms) : 0;
}
