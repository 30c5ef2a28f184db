/* The records of the state topic, as lstmstream/serve/state_records.py, which is the definition, writes and reads them:
 * record keys and checksums of many records at once. Included by codec.c.
 */

#define CRC_BYTES 4

static uint32_t crc_tables[8][256];

/* Of CRC-32 (polynomial 0xEDB88320, as zlib has it), by which eight bytes are taken in one step ("slicing by 8"). */
static void fill_crc_tables(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
        crc_tables[0][i] = crc;
    }
    for (int table = 1; table < 8; table++)
        for (int i = 0; i < 256; i++) {
            uint32_t before = crc_tables[table - 1][i];
            crc_tables[table][i] = before >> 8 ^ crc_tables[0][before & 0xFF];
        }
}

/* Little-endian on every host. */
static inline uint32_t read_word(const unsigned char *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* As zlib.crc32(content, crc). */
static uint32_t crc_of(const unsigned char *at, Py_ssize_t size, uint32_t crc)
{
    crc = ~crc;
    for (; size >= 8; at += 8, size -= 8) {
        uint32_t low = crc ^ read_word(at), high = read_word(at + 4);
        crc = crc_tables[7][low & 0xFF] ^ crc_tables[6][low >> 8 & 0xFF] ^ crc_tables[5][low >> 16 & 0xFF]
              ^ crc_tables[4][low >> 24] ^ crc_tables[3][high & 0xFF] ^ crc_tables[2][high >> 8 & 0xFF]
              ^ crc_tables[1][high >> 16 & 0xFF] ^ crc_tables[0][high >> 24];
    }
    for (; size > 0; at++, size--) crc = crc >> 8 ^ crc_tables[0][(crc ^ *at) & 0xFF];
    return ~crc;
}

/* A record key: the prefix and the entity key. */
static PyObject *record_key(PyObject *prefix, PyObject *entity)
{
    Py_ssize_t before = PyBytes_Size(prefix), size = PyBytes_Size(entity);
    PyObject *found = PyBytes_FromStringAndSize(NULL, before + size);
    if (found == NULL) return NULL;
    char *at = PyBytes_AsString(found);
    memcpy(at, PyBytes_AsString(prefix), (size_t)before);
    memcpy(at + before, PyBytes_AsString(entity), (size_t)size);
    return found;
}

/* A record's value: the body, and the checksum of its key and the body. */
static PyObject *record_value(PyObject *key, const unsigned char *body, Py_ssize_t size)
{
    PyObject *found = PyBytes_FromStringAndSize((const char *)body, size + CRC_BYTES);
    if (found == NULL) return NULL;
    uint32_t crc = crc_of((const unsigned char *)PyBytes_AsString(key), PyBytes_Size(key), 0);
    crc = crc_of(body, size, crc);
    unsigned char *at = (unsigned char *)PyBytes_AsString(found) + size;
    for (int i = 0; i < CRC_BYTES; i++) at[i] = (unsigned char)(crc >> 8 * i);
    return found;
}

static PyObject *write_states(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *entities, *prefix, *null_key, *records, *lists[2] = {NULL, NULL}, *found = NULL;
    Py_buffer buffer;
    Py_ssize_t size; /* of a record */
    if (!PyArg_ParseTuple(args, "O!SSOn", &PyList_Type, &entities, &prefix, &null_key, &records, &size)) return NULL;
    if (PyObject_GetBuffer(records, &buffer, PyBUF_C_CONTIGUOUS) < 0) return NULL;
    Py_ssize_t count = PyList_Size(entities), row = 0;
    if (size < CRC_BYTES || buffer.len / size != count || buffer.len % size) {
        PyErr_SetString(PyExc_ValueError, "the records are not as many as the keys");
        goto end;
    }
    lists[0] = PyList_New(count), lists[1] = PyList_New(count);
    if (lists[0] == NULL || lists[1] == NULL) goto end;
    for (; row < count; row++) { /* calls no Python code, so the list stays as it is */
        PyObject *entity = PyList_GetItem(entities, row), *key;
        if (entity == Py_None) key = Py_NewRef(null_key);
        else if (PyBytes_Check(entity)) key = record_key(prefix, entity);
        else {
            PyErr_SetString(PyExc_TypeError, "a key is neither bytes nor None");
            goto end;
        }
        if (key == NULL || PyList_SetItem(lists[0], row, key) < 0) goto end; /* it takes the reference */
        PyObject *value = record_value(key, (const unsigned char *)buffer.buf + row * size, size - CRC_BYTES);
        if (value == NULL || PyList_SetItem(lists[1], row, value) < 0) goto end;
    }
    found = Py_BuildValue("(OO)", lists[0], lists[1]);
end:
    PyBuffer_Release(&buffer);
    for (int i = 0; i < 2; i++) Py_XDECREF(lists[i]);
    return found;
}

static PyObject *read_states(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *keys, *values, *records;
    Py_buffer buffer;
    Py_ssize_t size, row = 0; /* `size`: of a record */
    if (!PyArg_ParseTuple(args, "O!O!On", &PyList_Type, &keys, &PyList_Type, &values, &records, &size)) return NULL;
    if (PyObject_GetBuffer(records, &buffer, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0) return NULL;
    Py_ssize_t count = PyList_Size(values);
    if (size < CRC_BYTES || PyList_Size(keys) != count || buffer.len / size != count || buffer.len % size) {
        PyBuffer_Release(&buffer);
        PyErr_SetString(PyExc_ValueError, "keys, values and records are not equally many");
        return NULL;
    }
    for (; row < count; row++) {
        PyObject *key = PyList_GetItem(keys, row), *value = PyList_GetItem(values, row);
        if (!PyBytes_Check(key) || !PyBytes_Check(value) || PyBytes_Size(value) != size) break;
        const unsigned char *content = (const unsigned char *)PyBytes_AsString(value);
        uint32_t crc = crc_of((const unsigned char *)PyBytes_AsString(key), PyBytes_Size(key), 0);
        if (crc_of(content, size - CRC_BYTES, crc) != read_word(content + size - CRC_BYTES)) break;
        memcpy((char *)buffer.buf + row * size, content, (size_t)size);
    }
    PyBuffer_Release(&buffer);
    return PyBool_FromLong(row == count);
}
