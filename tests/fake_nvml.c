/* NVIDIA's management library as the tests have it: every answer stands in the file that FAKE_NVML names, one a line,
 * "DEVICE KEY VALUE" (device -1: the library itself), and is read anew at each call, so that devices can fall ill. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *Handle;
enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, TIMEOUT = 10 };

static long long get(int device, const char *key, long long otherwise) {
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    int found_device;
    char found_key[64];
    long long value;
    if (file == NULL) return otherwise;
    while (fscanf(file, "%d %63s %lld", &found_device, found_key, &value) == 3)
        if (found_device == device && strcmp(found_key, key) == 0) otherwise = value;
    fclose(file);
    return otherwise;
}

static int of(Handle handle) { return (int)(long)handle - 1; }
static int fault(Handle handle) { return (int)get(of(handle), "error", OK); }

/* A figure that a device may not tell (a key that is not in the file). */
static int figure(Handle handle, const char *key, long long *value) {
    if (fault(handle)) return fault(handle);
    *value = get(of(handle), key, -1);
    return *value < 0 ? UNSUPPORTED : OK;
}

int nvmlInit_v2(void) { return (int)get(-1, "error", OK); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "fake error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)get(-1, "count", 0);
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle *handle) {
    *handle = (Handle)(long)(index + 1);
    return fault(*handle);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Handle *handle) {
    int index;
    if (sscanf(uuid, "GPU-fake-%d", &index) != 1) return NOT_FOUND;
    return nvmlDeviceGetHandleByIndex_v2((unsigned)index, handle);
}

int nvmlDeviceGetUUID(Handle handle, char *text, unsigned size) {
    snprintf(text, size, "GPU-fake-%d", of(handle));
    return fault(handle);
}

int nvmlDeviceGetName(Handle handle, char *text, unsigned size) {
    snprintf(text, size, "Fake H100");
    return fault(handle);
}

int nvmlDeviceGetMemoryInfo(Handle handle, unsigned long long *total_free_used) {
    if (fault(handle)) return fault(handle);
    if (get(of(handle), "memory_total", -1) < 0) return UNSUPPORTED;
    total_free_used[0] = (unsigned long long)get(of(handle), "memory_total", 1000);
    total_free_used[2] = (unsigned long long)get(of(handle), "memory_used", 0);
    total_free_used[1] = total_free_used[0] - total_free_used[2];
    return OK;
}

int nvmlDeviceGetUtilizationRates(Handle handle, unsigned *gpu_memory) {
    long long value;
    int code = figure(handle, "utilization", &value);
    if (code == OK) gpu_memory[0] = (unsigned)value;
    return code;
}

int nvmlDeviceGetTemperature(Handle handle, int sensor, unsigned *celsius) {
    if (sensor != 0) return INVALID;
    *celsius = (unsigned)get(of(handle), "temperature", 30);
    return fault(handle);
}

int nvmlDeviceGetPowerUsage(Handle handle, unsigned *milliwatts) {
    long long value;
    int code = figure(handle, "power_mw", &value);
    if (code == OK) *milliwatts = (unsigned)value;
    return code;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Handle handle, unsigned long long *bits) {
    long long value;
    int code = figure(handle, "throttle", &value);
    if (code == OK) *bits = (unsigned long long)value;
    return code;
}

int nvmlDeviceGetTotalEccErrors(Handle handle, int type, int counter, unsigned long long *count) {
    long long value;
    int code = figure(handle, "ecc", &value);
    if (type != 1 || counter != 0) return INVALID;
    if (code == OK) *count = (unsigned long long)value;
    return code;
}

/* One event set watches one device; an event is new while "xid_number" is above the one that was told last. */
struct Set { Handle device; long long told; };
struct Event { Handle device; unsigned long long type, data; };

int nvmlEventSetCreate(struct Set **set) {
    *set = calloc(1, sizeof **set);
    return OK;
}

int nvmlDeviceRegisterEvents(Handle handle, unsigned long long types, struct Set *set) {
    if (types != 8) return INVALID;
    set->device = handle;
    return fault(handle);
}

int nvmlEventSetWait(struct Set *set, struct Event *event, unsigned timeout_ms) {
    long long number = get(of(set->device), "xid_number", 0);
    (void)timeout_ms;
    if (number <= set->told) return TIMEOUT;
    set->told = number;
    event->device = set->device;
    event->type = 8;
    event->data = (unsigned long long)get(of(set->device), "xid", 0);
    return OK;
}

int nvmlEventSetWait_v2(struct Set *set, struct Event *event, unsigned timeout_ms) {
    return nvmlEventSetWait(set, event, timeout_ms);
}
