/* The records of a batch of Kafka's log, as lstmstream/transport/record_format.py, which is the definition, reads and
 * writes them; it calls these functions, and does itself what they decline. Included by codec.c.
 */

#define LONGEST_NUMBER 9 /* bytes of a varint; ten are allowed, and no usual value needs them */
#define LONGEST_LENGTH 5

/* After the zigzag varint at `at`; NULL where it does not end before `end`, or is longer than that. */
static const unsigned char *read_varint(const unsigned char *at, const unsigned char *end, int longest, int64_t *found)
{
    uint64_t bits = 0;
    for (int length = 0; length < longest && at < end; length++) {
        bits |= (uint64_t)(*at & 0x7F) << 7 * length;
        if (*at++ < 0x80) {
            *found = (int64_t)(bits >> 1 ^ (0 - (bits & 1)));
            return at;
        }
    }
    return NULL;
}

/* A key or a value, into the list; NULL where it is not sound, or there is no memory. */
static const unsigned char *read_bytes(const unsigned char *at, const unsigned char *end, PyObject *list, Py_ssize_t row)
{
    int64_t length;
    if ((at = read_varint(at, end, LONGEST_NUMBER, &length)) == NULL || length > end - at) return NULL;
    PyObject *found = Py_None;
    if (length < 0) Py_INCREF(found);
    else found = PyBytes_FromStringAndSize((const char *)at, (Py_ssize_t)length);
    if (found == NULL || PyList_SetItem(list, row, found) < 0) return NULL; /* it takes the reference */
    return length < 0 ? at : at + length;
}

/* One record that ends at `end`; where it has headers, (row, where they begin, where they end, how many) is appended. */
static int read_record(const unsigned char *start, const unsigned char *at, const unsigned char *end, Py_ssize_t row,
                       int64_t *offset_delta, int64_t *timestamp_delta, PyObject *lists[3])
{
    int64_t count;
    if (*at++ > 0x7F) return -1; /* attributes, which are not in use */
    if ((at = read_varint(at, end, LONGEST_NUMBER, timestamp_delta)) == NULL) return -1;
    if ((at = read_varint(at, end, LONGEST_NUMBER, offset_delta)) == NULL) return -1;
    if ((at = read_bytes(at, end, lists[0], row)) == NULL) return -1;
    if ((at = read_bytes(at, end, lists[1], row)) == NULL) return -1;
    if ((at = read_varint(at, end, LONGEST_NUMBER, &count)) == NULL || count < 0) return -1;
    if (count == 0) return at == end ? 0 : -1;
    PyObject *headers = Py_BuildValue("(nnnL)", row, at - start, end - start, (long long)count);
    int failed = headers == NULL || PyList_Append(lists[2], headers) < 0;
    Py_XDECREF(headers);
    return -failed;
}

static PyObject *read_records(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *body, *arrays[2], *lists[3], *found = NULL;
    Py_buffer buffers[2];
    Py_ssize_t count;
    int held = 0;
    if (!PyArg_ParseTuple(args, "SnOO", &body, &count, &arrays[0], &arrays[1])) return NULL;
    if (count < 0) Py_RETURN_NONE;
    lists[0] = PyList_New(count), lists[1] = PyList_New(count), lists[2] = PyList_New(0);
    if (lists[0] == NULL || lists[1] == NULL || lists[2] == NULL) goto end;
    for (; held < 2; held++) {
        if (PyObject_GetBuffer(arrays[held], &buffers[held], PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0) goto end;
        if (buffers[held].len / 8 < count) {
            held++;
            PyErr_SetString(PyExc_ValueError, "an array is too small");
            goto end;
        }
    }
    const unsigned char *start = (const unsigned char *)PyBytes_AsString(body), *at = start;
    const unsigned char *end = start + PyBytes_Size(body);
    for (Py_ssize_t row = 0; row < count && at != NULL; row++) {
        int64_t length, *offset_delta = (int64_t *)buffers[0].buf + row, *timestamp_delta = (int64_t *)buffers[1].buf + row;
        at = read_varint(at, end, LONGEST_LENGTH, &length);
        if (at == NULL || length < 1 || length > end - at
            || read_record(start, at, at + length, row, offset_delta, timestamp_delta, lists) < 0)
            at = NULL;
        else
            at += length;
    }
    if (at == end) found = Py_BuildValue("(OOO)", lists[0], lists[1], lists[2]);
    else if (!PyErr_Occurred()) found = Py_NewRef(Py_None);
end:
    while (held > 0) PyBuffer_Release(&buffers[--held]);
    for (int i = 0; i < 3; i++) Py_XDECREF(lists[i]);
    return found;
}

static inline uint64_t zigzag(int64_t value) { return (uint64_t)value << 1 ^ (value < 0 ? UINT64_MAX : 0); }

static inline Py_ssize_t varint_size(uint64_t bits)
{
    Py_ssize_t size = 1;
    for (; bits > 0x7F; bits >>= 7) size++;
    return size;
}

static inline char *write_varint(char *at, uint64_t bits)
{
    for (; bits > 0x7F; bits >>= 7) *at++ = (char)((bits & 0x7F) | 0x80);
    *at++ = (char)bits;
    return at;
}

static char *write_bytes(char *at, const char *content, Py_ssize_t length)
{
    at = write_varint(at, zigzag(length));
    if (length > 0) memcpy(at, content, (size_t)length);
    return at + (length > 0 ? length : 0);
}

typedef struct {
    int64_t timestamp_delta;
    const char *key, *value, *headers;
    Py_ssize_t key_length, value_length, headers_length; /* -1 is null */
    Py_ssize_t size; /* of what follows the record's length */
} Record;

static int field_of(PyObject *list, Py_ssize_t row, const char **content, Py_ssize_t *length)
{
    PyObject *item = PyList_GetItem(list, row);
    if (item == NULL) return -1;
    *length = -1;
    if (item == Py_None) return 0;
    if (!PyBytes_Check(item)) return -1;
    *content = PyBytes_AsString(item);
    *length = PyBytes_Size(item);
    return 0;
}

/* The bytes of the record after its length. */
static Py_ssize_t content_size(const Record *record, Py_ssize_t row)
{
    Py_ssize_t size = 1 + varint_size(zigzag(record->timestamp_delta)) + varint_size(zigzag(row));
    size += varint_size(zigzag(record->key_length)) + varint_size(zigzag(record->value_length));
    size += record->key_length > 0 ? record->key_length : 0;
    size += record->value_length > 0 ? record->value_length : 0;
    return size + (record->headers_length < 0 ? 1 : record->headers_length);
}

static PyObject *write_records(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *deltas, *keys, *values, *headers, *kept[3] = {NULL, NULL, NULL}, *found = NULL;
    if (!PyArg_ParseTuple(args, "OOOO", &deltas, &keys, &values, &headers)) return NULL;
    if (!PyList_Check(deltas) || !PyList_Check(keys) || !PyList_Check(values) || !PyList_Check(headers)) Py_RETURN_NONE;
    Py_ssize_t count = PyList_Size(deltas), total = 0, row;
    if (PyList_Size(keys) != count || PyList_Size(values) != count || PyList_Size(headers) != count) Py_RETURN_NONE;
    Record *records = PyMem_Calloc((size_t)count + 1, sizeof(Record));
    if (records == NULL) return PyErr_NoMemory();
    /* Other threads run while the bytes are copied, and may change the lists. */
    kept[0] = PyList_AsTuple(keys), kept[1] = PyList_AsTuple(values), kept[2] = PyList_AsTuple(headers);
    if (kept[0] == NULL || kept[1] == NULL || kept[2] == NULL) goto end;
    for (row = 0; row < count; row++) { /* calls no Python code, so the lists stay as they are */
        Record *record = &records[row];
        PyObject *delta = PyList_GetItem(deltas, row);
        if (delta == NULL || !PyLong_CheckExact(delta)) break;
        record->timestamp_delta = PyLong_AsLongLong(delta);
        if (record->timestamp_delta == -1 && PyErr_Occurred()) break;
        if (field_of(keys, row, &record->key, &record->key_length) < 0) break;
        if (field_of(values, row, &record->value, &record->value_length) < 0) break;
        if (field_of(headers, row, &record->headers, &record->headers_length) < 0) break;
        record->size = content_size(record, row);
        total += record->size + varint_size(zigzag(record->size));
    }
    if (row < count) {
        PyErr_Clear();
        found = Py_NewRef(Py_None);
    } else if ((found = PyBytes_FromStringAndSize(NULL, total)) != NULL) {
        char *at = PyBytes_AsString(found);
        Py_BEGIN_ALLOW_THREADS
        for (row = 0; row < count; row++) {
            const Record *record = &records[row];
            at = write_varint(at, zigzag(record->size));
            *at++ = 0; /* attributes */
            at = write_varint(at, zigzag(record->timestamp_delta));
            at = write_varint(at, zigzag(row));
            at = write_bytes(at, record->key, record->key_length);
            at = write_bytes(at, record->value, record->value_length);
            if (record->headers_length < 0) *at++ = 0;
            else at = (char *)memcpy(at, record->headers, (size_t)record->headers_length) + record->headers_length;
        }
        Py_END_ALLOW_THREADS
    }
end:
    for (int i = 0; i < 3; i++) Py_XDECREF(kept[i]);
    PyMem_Free(records);
    return found;
}
