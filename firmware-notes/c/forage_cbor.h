/* CBOR as a microcontroller of forage reads and writes it: no memory but the caller's.
 *
 * Reading is strict, as the protocol wants it: `cbor_valid` looks through a whole payload once, and
 * what it has passed may be walked with the other functions without a check of bounds by the caller
 * (they check all the same). */
#ifndef FORAGE_CBOR_H
#define FORAGE_CBOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CBOR_MAP_KEYS_MAX 64 /* A map with more is refused: keys are compared with each other. */

enum cbor_kind {
    CBOR_BROKEN,
    CBOR_UINT,     /* value */
    CBOR_NEGATIVE, /* -1 - value */
    CBOR_BYTES,    /* data, value bytes */
    CBOR_TEXT,     /* data, value bytes of UTF-8 */
    CBOR_ARRAY,    /* value items follow */
    CBOR_MAP,      /* value keys and values follow */
    CBOR_FALSE,
    CBOR_TRUE,
    CBOR_NULL,
    CBOR_FLOAT /* number */
};

struct cbor_item {
    enum cbor_kind kind;
    uint64_t value;
    const uint8_t *data;
    double number;
};

/* A place in a payload. */
struct cbor_reader {
    const uint8_t *at;
    const uint8_t *end;
};

/* Whether `data` is one item in its shortest form, with texts as keys and none of them twice, arrays
 * and maps at most `nesting_max` within each other, nothing behind it, and floats only if allowed. */
bool cbor_valid(const uint8_t *data, size_t length, unsigned nesting_max, bool floats);

/* The next head, and what a string holds. */
struct cbor_item cbor_read(struct cbor_reader *reader);

/* Go over one whole item. */
void cbor_skip(struct cbor_reader *reader);

/* The value of a key in the map that `map` stands at; false where there is none. */
bool cbor_find(struct cbor_reader map, const char *key, struct cbor_reader *value);

bool cbor_is_text(const struct cbor_item *item, const char *text);

/* Where to write; what does not fit is left out and noted. */
struct cbor_writer {
    uint8_t *at;
    uint8_t *end;
    bool is_full;
};

void cbor_put_uint(struct cbor_writer *writer, uint64_t value);
void cbor_put_int(struct cbor_writer *writer, int64_t value);
void cbor_put_text(struct cbor_writer *writer, const char *text);
void cbor_put_bytes(struct cbor_writer *writer, const uint8_t *data, size_t length);
void cbor_put_array(struct cbor_writer *writer, uint64_t items);
void cbor_put_map(struct cbor_writer *writer, uint64_t pairs);
void cbor_put_bool(struct cbor_writer *writer, bool value);
void cbor_put_null(struct cbor_writer *writer);
void cbor_put_double(struct cbor_writer *writer, double value);
/* Bytes that are CBOR already. */
void cbor_put_raw(struct cbor_writer *writer, const uint8_t *data, size_t length);

#endif
