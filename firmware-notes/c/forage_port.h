/* What the loop in main.c needs of a board: one connection to a broker, a clock, randomness.
 *
 * `port_mosquitto.c` does it with libmosquitto, for Linux. For ESP-IDF, write these eight functions over
 * esp_mqtt_client (start with `disable_auto_reconnect` and the will in its configuration; publish with
 * esp_mqtt_client_publish; collect the fragments of MQTT_EVENT_DATA in a buffer of
 * FORAGE_PACKET_BYTES_MAX and give the whole to `inbox`, in the task that calls `port_wait`),
 * esp_timer_get_time and esp_fill_random. Nothing else of the client knows of sockets. */
#ifndef FORAGE_PORT_H
#define FORAGE_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PORT_KEEPALIVE_S 10

/* Called within `port_wait`, for each message of the inbox. */
typedef void (*port_inbox)(const uint8_t *payload, size_t length);

struct port_connection {
    const char *host;
    int port;
    const char *user, *password; /* NULL: none. */
    const char *client_id;       /* Clean session, keepalive PORT_KEEPALIVE_S. */
    const char *will_topic, *will; /* QoS 1, retained. */
    const char *inbox_topic;       /* To subscribe to, QoS 1. */
};

/* Connect and subscribe; true when both are confirmed. */
bool port_connect(const struct port_connection *connection, port_inbox inbox);
void port_disconnect(void);

/* Put a message into the connection's buffers; must not wait for the broker. What is lost here is
 * repeated by the device. */
void port_publish(const char *topic, const uint8_t *payload, size_t length, int qos, bool retain);

/* Serve the connection for at most so long, less where something comes; false: it has ended. */
bool port_wait(uint32_t ms);

void port_sleep(uint32_t ms);
uint64_t port_now_us(void); /* Since the start; never goes back. */
void port_random(uint8_t *bytes, size_t length);
void port_print(const char *text); /* A line for people. */

#endif
