/* A device of forage's MCU profile: bytes in, bytes out, one call at a time.
 *
 * Everything lies in one `struct forage_device` of the caller's; nothing is allocated. It has no socket
 * and no clock: give it what came to the inbox (`forage_inbox`), call `forage_poll` when it wants to be
 * called, and publish what it publishes. The README in the folder above says why each step is as it
 * is; `main.c` shows the loop around it. */
#ifndef FORAGE_DEVICE_H
#define FORAGE_DEVICE_H

#include "forage_cbor.h"

#define FORAGE_PACKET_BYTES_MAX 4096    /* The longest payload that is taken. */
#define FORAGE_ARGUMENTS_BYTES_MAX 1024 /* Of one call. */
#define FORAGE_RESULT_BYTES_MAX 1024    /* Of one outcome. */
#define FORAGE_DOCUMENT_BYTES_MAX 768   /* Presence and capabilities as JSON. */
#define FORAGE_TOPIC_BYTES_MAX 192
#define FORAGE_NAME_BYTES_MAX 33
#define FORAGE_SESSION_BYTES_MAX 28

/* -- functions ------------------------------------------------------------------------------------ */

enum forage_step {
    FORAGE_DONE,   /* `result` has the value. */
    FORAGE_FAILED, /* By `forage_fail`. */
    FORAGE_AGAIN   /* Call me again after `wait_ms`, so that beats and keepalive go on. */
};

struct forage_call {
    struct cbor_reader arguments; /* At the array of positional arguments. */
    struct cbor_reader keywords;  /* At the map of the others; empty where there are none. */
    struct cbor_writer result;    /* Put one value here. */
    uint32_t step;                /* How often this call of the function was called before. */
    uint32_t wait_ms;
    const char *error_type; /* A Python exception's name, or "" for `forage.Refused`. */
    char error_text[128]; /* ASCII, for it is cut where it is too long. */
};

typedef enum forage_step (*forage_function)(struct forage_call *call);

struct forage_named {
    const char *name;
    forage_function run;
};

/* An argument by its position or its name; false where the call has none. */
bool forage_argument(const struct forage_call *call, unsigned position, const char *name,
                     struct cbor_reader *value);
/* ... that is an integer of 32 bits; false where it is none. */
bool forage_argument_int(const struct forage_call *call, unsigned position, const char *name,
                         int32_t *value);
/* What to return for a call that cannot be done. `type` is constant text, such as "ValueError". */
enum forage_step forage_fail(struct forage_call *call, const char *type, const char *text);

/* -- the device ----------------------------------------------------------------------------------- */

struct forage_settings {
    const char *name; /* 1 to 32 of a-z, 0-9, _ and -, its own on this bus. */
    const char *root; /* "forage" */
    const char *version;
    const char *labels; /* JSON: {"room": "lab"}, or {} */
    const struct forage_named *functions;
    size_t functions_count;
    void (*publish)(void *context, const char *topic, const uint8_t *payload, size_t length, int qos,
                    bool retain);
    uint64_t (*now_us)(void *context);
    void (*note)(void *context, const char *text); /* A line for people. */
    void *context;
};

#define FORAGE_UNSEEN_MAX 4  /* With so many not seen, what needs an answer is dropped: it comes again. */
#define FORAGE_UNSEEN_SLOTS 7 /* One message has at most three answers. */
#define FORAGE_SMALL_BYTES_MAX 208
#define FORAGE_PREFIX_BYTES_MAX 128

struct forage_unseen {
    uint64_t n;
    uint64_t said_seen; /* The `q` in it. */
    bool is_outcome;    /* Then its bytes are `outcome`'s. */
    uint16_t length;
    uint8_t bytes[FORAGE_SMALL_BYTES_MAX];
};

struct forage_device {
    const struct forage_settings *settings;
    char session[FORAGE_SESSION_BYTES_MAX]; /* Empty: not connected. */
    bool is_draining;
    char refused[160]; /* Why the controller does not want this device; it must not try again. */

    /* The link. */
    char controller[FORAGE_SESSION_BYTES_MAX];
    char holder[FORAGE_SESSION_BYTES_MAX]; /* The controller session that is obeyed. */
    uint64_t epoch, sent, received;
    struct forage_unseen unseen[FORAGE_UNSEEN_SLOTS];
    unsigned unseen_count;
    uint64_t repeat_at_ms;
    uint32_t repeat_after_ms;

    /* The one call. */
    enum { FORAGE_FREE, FORAGE_RUNNING, FORAGE_KEPT } state;
    uint64_t packet_bytes_max; /* The client's. */
    uint64_t assignment, low, timeout_ms, since_ms, beat_at_ms, step_at_ms, started_us;
    uint32_t beat_ms;
    bool is_last_try;
    uint8_t tag[16];
    char task[FORAGE_NAME_BYTES_MAX];
    char topic[FORAGE_TOPIC_BYTES_MAX];
    forage_function function;
    struct forage_call call;
    uint8_t arguments[FORAGE_ARGUMENTS_BYTES_MAX];
    uint8_t result[FORAGE_RESULT_BYTES_MAX];
    /* The outcome as it is sent: room for what changes from link to link, then what does not. */
    uint8_t outcome[FORAGE_PREFIX_BYTES_MAX + FORAGE_RESULT_BYTES_MAX + 192];
    size_t outcome_begin, outcome_end;

    char document[FORAGE_DOCUMENT_BYTES_MAX];
};

/* False where the settings do not fit the buffers. */
bool forage_init(struct forage_device *device, const struct forage_settings *settings);

/* The last will for a session: retained, QoS 1, on `topic`. Both buffers are the caller's. */
void forage_will(const struct forage_device *device, const char *session,
                 char topic[FORAGE_TOPIC_BYTES_MAX], char *document, size_t size);
void forage_inbox_topic(const struct forage_device *device, char topic[FORAGE_TOPIC_BYTES_MAX]);

/* A connection with this session is there and the inbox subscribed to. */
void forage_connected(struct forage_device *device, const char *session);
void forage_disconnected(struct forage_device *device);

/* Take one message of the inbox, whatever its bytes are. */
void forage_inbox(struct forage_device *device, const uint8_t *payload, size_t length, uint64_t now_ms);

/* Do what is due; the milliseconds until there is something to do again. */
uint32_t forage_poll(struct forage_device *device, uint64_t now_ms);

#endif
