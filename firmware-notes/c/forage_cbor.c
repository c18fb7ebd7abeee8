/* CBOR in the caller's memory; the header says what for. */
#include "forage_cbor.h"

#include <math.h>
#include <string.h>

static const struct cbor_item broken = {CBOR_BROKEN, 0, NULL, 0.0};

/* -- reading -------------------------------------------------------------------------------------- */

static double half(uint64_t bits)
{
    uint64_t exponent = bits >> 10 & 31, fraction = bits & 1023;
    double value;

    if (exponent == 31)
        value = fraction ? NAN : INFINITY;
    else
        value = ldexp((double)(fraction + (exponent ? 1024 : 0)), (exponent ? (int)exponent : 1) - 25);
    return bits & 0x8000 ? -value : value;
}

static double real(unsigned size, uint64_t bits)
{
    if (size == 25)
        return half(bits);
    if (size == 26) {
        uint32_t narrow = (uint32_t)bits;
        float single;
        memcpy(&single, &narrow, sizeof single);
        return single;
    }
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

struct cbor_item cbor_read(struct cbor_reader *reader)
{
    static const enum cbor_kind kinds[] = {CBOR_UINT, CBOR_NEGATIVE, CBOR_BYTES,
                                           CBOR_TEXT, CBOR_ARRAY,    CBOR_MAP};
    struct cbor_item item = broken;

    if (reader->at >= reader->end)
        return broken;
    uint8_t head = *reader->at++;
    unsigned major = head >> 5, size = head & 31;
    uint64_t value = size;

    if (size >= 24) {
        if (size > 27)
            return broken;
        unsigned width = 1u << (size - 24);
        if ((size_t)(reader->end - reader->at) < width)
            return broken;
        value = 0;
        for (unsigned i = 0; i < width; i++)
            value = value << 8 | *reader->at++;
        /* Floats have a form of their own; all else is written as short as it can be. */
        if (major != 7 && value < (width == 1 ? 24 : UINT64_C(1) << (4 * width)))
            return broken;
    }
    if (major == 7) {
        if (size >= 25) {
            item.kind = CBOR_FLOAT;
            item.number = real(size, value);
        } else if (size >= 20 && size <= 22) {
            item.kind = size == 20 ? CBOR_FALSE : size == 21 ? CBOR_TRUE : CBOR_NULL;
        }
        return item;
    }
    if (major == 6)
        return broken;
    /* A string is there as a whole, an array's or map's items take a byte each at least. */
    if (major >= 2 && value > (uint64_t)(reader->end - reader->at) / (major == 5 ? 2 : 1))
        return broken;
    item.kind = kinds[major];
    item.value = value;
    if (major == 2 || major == 3) {
        item.data = reader->at;
        reader->at += value;
    }
    return item;
}

void cbor_skip(struct cbor_reader *reader)
{
    for (uint64_t left = 1; left; left--) {
        struct cbor_item item = cbor_read(reader);
        if (item.kind == CBOR_BROKEN) {
            reader->at = reader->end;
            return;
        }
        if (item.kind == CBOR_ARRAY)
            left += item.value;
        else if (item.kind == CBOR_MAP)
            left += 2 * item.value;
    }
}

static bool is_utf8(const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        uint8_t first = *at++;
        unsigned more = first < 0x80 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
        uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
        uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;

        if ((first >= 0x80 && first < 0xC2) || first > 0xF4 || (size_t)(end - at) < more)
            return false;
        for (; more; more--, low = 0x80, high = 0xBF, at++)
            if (*at < low || *at > high)
                return false;
    }
    return true;
}

static bool stood_before(struct cbor_reader keys, const uint8_t *here, const struct cbor_item *key)
{
    while (keys.at < here) {
        struct cbor_item other = cbor_read(&keys);
        if (other.value == key->value && !memcmp(other.data, key->data, (size_t)key->value))
            return true;
        cbor_skip(&keys);
    }
    return false;
}

static bool valid_item(struct cbor_reader *reader, unsigned nesting, bool floats)
{
    struct cbor_item item = cbor_read(reader);

    switch (item.kind) {
    case CBOR_BROKEN:
        return false;
    case CBOR_FLOAT:
        return floats;
    case CBOR_TEXT:
        return is_utf8(item.data, item.data + item.value);
    case CBOR_ARRAY:
        if (!nesting)
            return false;
        for (uint64_t i = 0; i < item.value; i++)
            if (!valid_item(reader, nesting - 1, floats))
                return false;
        return true;
    case CBOR_MAP: {
        struct cbor_reader keys = *reader;
        if (!nesting || item.value > CBOR_MAP_KEYS_MAX)
            return false;
        for (uint64_t i = 0; i < item.value; i++) {
            const uint8_t *here = reader->at;
            struct cbor_item key = cbor_read(reader);
            if (key.kind != CBOR_TEXT || !is_utf8(key.data, key.data + key.value))
                return false;
            if (stood_before(keys, here, &key) || !valid_item(reader, nesting - 1, floats))
                return false;
        }
        return true;
    }
    default:
        return true;
    }
}

bool cbor_valid(const uint8_t *data, size_t length, unsigned nesting_max, bool floats)
{
    struct cbor_reader reader = {data, data + length};
    return valid_item(&reader, nesting_max, floats) && reader.at == reader.end;
}

bool cbor_is_text(const struct cbor_item *item, const char *text)
{
    size_t length = strlen(text);
    return item->kind == CBOR_TEXT && item->value == length && !memcmp(item->data, text, length);
}

bool cbor_find(struct cbor_reader map, const char *key, struct cbor_reader *value)
{
    struct cbor_item head = cbor_read(&map);

    if (head.kind != CBOR_MAP)
        return false;
    for (uint64_t i = 0; i < head.value; i++) {
        struct cbor_item found = cbor_read(&map);
        if (cbor_is_text(&found, key)) {
            *value = map;
            return true;
        }
        cbor_skip(&map);
    }
    return false;
}

/* -- writing -------------------------------------------------------------------------------------- */

void cbor_put_raw(struct cbor_writer *writer, const uint8_t *data, size_t length)
{
    if (writer->is_full || (size_t)(writer->end - writer->at) < length) {
        writer->is_full = true;
        return;
    }
    if (length)
        memcpy(writer->at, data, length);
    writer->at += length;
}

static void put_head(struct cbor_writer *writer, unsigned major, uint64_t value)
{
    uint8_t bytes[9];
    unsigned width = value < 24 ? 0 : value <= 0xFF ? 1 : value <= 0xFFFF ? 2 : value <= 0xFFFFFFFF ? 4 : 8;
    unsigned code = width < 2 ? 23 + width : width == 2 ? 25 : width == 4 ? 26 : 27;

    bytes[0] = (uint8_t)(major << 5 | (width ? code : value));
    for (unsigned i = 0; i < width; i++)
        bytes[1 + i] = (uint8_t)(value >> 8 * (width - 1 - i));
    cbor_put_raw(writer, bytes, 1 + width);
}

void cbor_put_uint(struct cbor_writer *writer, uint64_t value) { put_head(writer, 0, value); }

void cbor_put_int(struct cbor_writer *writer, int64_t value)
{
    put_head(writer, value < 0, value < 0 ? (uint64_t)(-1 - value) : (uint64_t)value);
}

void cbor_put_text(struct cbor_writer *writer, const char *text)
{
    put_head(writer, 3, strlen(text));
    cbor_put_raw(writer, (const uint8_t *)text, strlen(text));
}

void cbor_put_bytes(struct cbor_writer *writer, const uint8_t *data, size_t length)
{
    put_head(writer, 2, length);
    cbor_put_raw(writer, data, length);
}

void cbor_put_array(struct cbor_writer *writer, uint64_t items) { put_head(writer, 4, items); }

void cbor_put_map(struct cbor_writer *writer, uint64_t pairs) { put_head(writer, 5, pairs); }

void cbor_put_bool(struct cbor_writer *writer, bool value)
{
    cbor_put_raw(writer, (const uint8_t *)(value ? "\xF5" : "\xF4"), 1);
}

void cbor_put_null(struct cbor_writer *writer) { cbor_put_raw(writer, (const uint8_t *)"\xF6", 1); }

void cbor_put_double(struct cbor_writer *writer, double value)
{
    uint8_t bytes[9] = {0xFB};
    uint64_t bits;

    memcpy(&bits, &value, sizeof bits);
    for (unsigned i = 0; i < 8; i++)
        bytes[1 + i] = (uint8_t)(bits >> 8 * (7 - i));
    cbor_put_raw(writer, bytes, sizeof bytes);
}
