/* The port for Linux, over libmosquitto (Debian: libmosquitto-dev). The library allocates for its
 * packets; this client does not. */
#define _GNU_SOURCE
#include "forage_port.h"

#include <mosquitto.h>
#include <stdio.h>
#include <sys/random.h>
#include <time.h>

#define CONNECT_LIMIT_MS 10000

static struct mosquitto *client;
static const struct port_connection *wanted;
static port_inbox on_inbox;
static enum { WAITING, READY, FAILED } state;

static void on_connect(struct mosquitto *from, void *context, int code)
{
    (void)context;
    if (code || mosquitto_subscribe(from, NULL, wanted->inbox_topic, 1))
        state = FAILED;
}

static void on_subscribe(struct mosquitto *from, void *context, int number, int count, const int *granted)
{
    (void)from, (void)context, (void)number;
    state = count == 1 && granted[0] < 0x80 ? READY : FAILED;
}

static void on_message(struct mosquitto *from, void *context, const struct mosquitto_message *message)
{
    (void)from, (void)context;
    on_inbox(message->payload, (size_t)message->payloadlen);
}

bool port_connect(const struct port_connection *connection, port_inbox inbox)
{
    wanted = connection;
    on_inbox = inbox;
    state = WAITING;
    /* A new client for each connection: an old one would say again what it has queued. */
    if (!client)
        mosquitto_lib_init();
    else
        mosquitto_destroy(client);
    client = mosquitto_new(connection->client_id, true, NULL);
    if (!client)
        return false;
    mosquitto_int_option(client, MOSQ_OPT_TCP_NODELAY, 1);
    mosquitto_connect_callback_set(client, on_connect);
    mosquitto_subscribe_callback_set(client, on_subscribe);
    mosquitto_message_callback_set(client, on_message);
    mosquitto_username_pw_set(client, connection->user, connection->password);
    mosquitto_will_set(client, connection->will_topic, (int)__builtin_strlen(connection->will),
                       connection->will, 1, true);
    if (mosquitto_connect(client, connection->host, connection->port, PORT_KEEPALIVE_S))
        return false;
    for (uint64_t end = port_now_us() + CONNECT_LIMIT_MS * 1000; state == WAITING;)
        if (port_now_us() > end || !port_wait(100))
            return false;
    return state == READY;
}

void port_disconnect(void)
{
    if (client)
        mosquitto_disconnect(client);
}

void port_publish(const char *topic, const uint8_t *payload, size_t length, int qos, bool retain)
{
    mosquitto_publish(client, NULL, topic, (int)length, payload, qos, retain);
}

bool port_wait(uint32_t ms) { return mosquitto_loop(client, (int)ms, 1) == MOSQ_ERR_SUCCESS; }

void port_sleep(uint32_t ms)
{
    struct timespec time = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&time, NULL);
}

uint64_t port_now_us(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_nsec / 1000;
}

void port_random(uint8_t *bytes, size_t length)
{
    while (length) {
        ssize_t got = getrandom(bytes, length, 0);
        if (got > 0) {
            bytes += got;
            length -= (size_t)got;
        }
    }
}

void port_print(const char *text)
{
    printf("forage: %s\n", text);
    fflush(stdout);
}
