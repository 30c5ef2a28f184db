/* Records to be published, joined from columns as lstmstream/serve/encode.py joins them. Included by codec.c. */

enum { TEXTS, INTEGERS, TIMES, FLAGS, KEYS, COLUMN_KINDS };

typedef struct {
    int kind;
    PyObject *data; /* borrowed of the list of columns */
    Py_buffer buffer; /* of an array */
    int has_buffer;
    const char *prefix, *text; /* `text`: of the row that is being written, where there is a list */
    Py_ssize_t prefix_size, text_size;
} Column;

static char *write_integer(char *at, int64_t value)
{
    char digits[20];
    int size = 0;
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    if (value < 0) *at++ = '-';
    do digits[size++] = (char)('0' + rest % 10);
    while (rest /= 10);
    while (size > 0) *at++ = digits[--size];
    return at;
}

static char *write_digits(char *at, int value, int size)
{
    for (int i = size - 1; i >= 0; i--, value /= 10) at[i] = (char)('0' + value % 10);
    return at + size;
}

/* YYYY-MM-DDTHH:MM:SS.mmm; NULL outside of the years 1 to 9999. */
static char *write_time(char *at, int64_t ms)
{
    if (ms < -62135596800000 || ms > 253402300799999) return NULL;
    int64_t since = ms + 719468 * (int64_t)86400000; /* 0000-03-01, before which no such time is */
    int days = (int)(since / 86400000), of_day = (int)(since % 86400000);
    int era = days / 146097, of_era = days % 146097; /* as in iso_columns.py */
    int year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    int day_of_year = of_era - (365 * year + year / 4 - year / 100), month = (5 * day_of_year + 2) / 153;
    int day = day_of_year - (153 * month + 2) / 5 + 1;
    month += month < 10 ? 3 : -9;
    at = write_digits(at, year + era * 400 + (month <= 2), 4);
    *at++ = '-', at = write_digits(at, month, 2);
    *at++ = '-', at = write_digits(at, day, 2);
    *at++ = 'T', at = write_digits(at, of_day / 3600000, 2);
    *at++ = ':', at = write_digits(at, of_day / 60000 % 60, 2);
    *at++ = ':', at = write_digits(at, of_day / 1000 % 60, 2);
    *at++ = '.';
    return write_digits(at, of_day % 1000, 3);
}

/* Finds the bytes at `row` of a column with a list; -1 for a key that JSON would write in another way, and no bytes. */
static int find_text(Column *column, Py_ssize_t row)
{
    PyObject *item = PyList_GetItem(column->data, row);
    if (item == NULL || !PyBytes_Check(item)) return -1;
    const char *text = column->text = PyBytes_AsString(item);
    Py_ssize_t size = column->text_size = PyBytes_Size(item);
    for (Py_ssize_t i = 0; column->kind == KEYS && i < size; i++)
        if (text[i] < ' ' || text[i] > '~' || text[i] == '"' || text[i] == '\\') return -1;
    return 0;
}

static inline char *append(char *at, const char *text, Py_ssize_t size)
{
    return (char *)memcpy(at, text, (size_t)size) + size;
}

/* One row of all columns, as bytes; NULL where it is declined or there is no memory. */
static PyObject *write_row(Column *columns, Py_ssize_t n_columns, PyObject *suffix, Py_ssize_t row, char **space,
                           Py_ssize_t *room)
{
    Py_ssize_t suffix_size = PyBytes_Size(suffix), needed = suffix_size;
    for (Py_ssize_t i = 0; i < n_columns; i++) {
        Column *column = &columns[i];
        if (!column->has_buffer && find_text(column, row) < 0) return NULL;
        needed += column->prefix_size + (column->has_buffer ? 24 : column->text_size + 8); /* at most "key":"" more */
    }
    if (needed > *room) {
        char *larger = PyMem_Realloc(*space, (size_t)needed * 2);
        if (larger == NULL) return PyErr_NoMemory();
        *space = larger;
        *room = needed * 2;
    }
    char *at = *space;
    for (Py_ssize_t i = 0; i < n_columns; i++) {
        const Column *column = &columns[i];
        at = append(at, column->prefix, column->prefix_size);
        if (column->kind == INTEGERS) {
            at = write_integer(at, ((int64_t *)column->buffer.buf)[row]);
        } else if (column->kind == TIMES) {
            if ((at = write_time(at, ((int64_t *)column->buffer.buf)[row])) == NULL) return NULL;
        } else if (column->kind == FLAGS) {
            int flag = ((char *)column->buffer.buf)[row] != 0;
            at = (char *)memcpy(at, flag ? "true" : "false", 5) + (flag ? 4 : 5);
        } else {
            if (column->kind == KEYS) at = append(at, "\"key\":\"", 7);
            at = append(at, column->text, column->text_size);
            if (column->kind == KEYS) *at++ = '"';
        }
    }
    at = append(at, PyBytes_AsString(suffix), suffix_size);
    return PyBytes_FromStringAndSize(*space, at - *space);
}

static int open_column(Column *column, PyObject *description, Py_ssize_t count)
{
    PyObject *prefix;
    if (!PyArg_ParseTuple(description, "iSO", &column->kind, &prefix, &column->data)) return -1;
    column->prefix = PyBytes_AsString(prefix); /* which lives as long as the tuple */
    column->prefix_size = PyBytes_Size(prefix);
    Py_ssize_t length = -1, width = column->kind == FLAGS ? 1 : 8;
    if (column->kind == TEXTS || column->kind == KEYS) {
        length = PyList_Check(column->data) ? PyList_Size(column->data) : -1;
    } else if (column->kind >= 0 && column->kind < COLUMN_KINDS) {
        if (PyObject_GetBuffer(column->data, &column->buffer, PyBUF_C_CONTIGUOUS) < 0) return -1;
        column->has_buffer = 1;
        length = column->buffer.len / width;
    }
    if (length == count) return 0;
    PyErr_SetString(PyExc_ValueError, "a column has not as many rows as there are");
    return -1;
}

static PyObject *write_rows(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *descriptions, *suffix, *rows = NULL;
    Py_ssize_t count, opened = 0, room = 0;
    char *space = NULL;
    if (!PyArg_ParseTuple(args, "OSn", &descriptions, &suffix, &count)) return NULL;
    if (!PyTuple_Check(descriptions) || count < 0) {
        PyErr_SetString(PyExc_TypeError, "write_rows(tuple of columns, suffix, count)");
        return NULL;
    }
    Py_ssize_t n_columns = PyTuple_Size(descriptions);
    Column *columns = PyMem_Calloc((size_t)n_columns + 1, sizeof(Column));
    if (columns == NULL) return PyErr_NoMemory();
    while (opened < n_columns && open_column(&columns[opened], PyTuple_GetItem(descriptions, opened), count) == 0)
        opened++;
    if (opened == n_columns) rows = PyList_New(count);
    for (Py_ssize_t row = 0; rows != NULL && row < count; row++) { /* calls no Python code */
        PyObject *made = write_row(columns, n_columns, suffix, row, &space, &room);
        if (made == NULL || PyList_SetItem(rows, row, made) < 0) Py_CLEAR(rows);
    }
    for (Py_ssize_t i = 0; i < n_columns; i++)
        if (columns[i].has_buffer) PyBuffer_Release(&columns[i].buffer);
    PyMem_Free(columns);
    PyMem_Free(space);
    if (rows == NULL && !PyErr_Occurred()) Py_RETURN_NONE;
    return rows;
}
