/* The texts of members of objects, for lstmstream/serve/event_fields.py. Included by codec.c. */

#define MAX_NAMES 64

/* Whether orjson would write a float of at most 15 digits as it is: without an exponent and without a zero too many. */
static int is_shortest_float(const Number *number)
{
    Py_ssize_t length = number->end - number->start;
    int places = -number->exponent;
    if (memchr(number->start, 'e', (size_t)length) != NULL || memchr(number->start, 'E', (size_t)length) != NULL) return 0;
    if (number->cut || number->digits >= 1000000000000000 || places < 1 || places > 15) return 0;
    if (number->end[-1] == '0' && places > 1) return 0;
    return number->digits == 0 || (double)number->digits >= POWERS[places > 3 ? places - 3 : 0]; /* at least 0.001 */
}

/* Whether the value that ends before `stop` is no object and no array, and would be written with the same bytes. */
static int is_written_so(const char *start, const char *stop, int kinds)
{
    Number number;
    if (*start == '"') return !(kinds & ESCAPED);
    if (*start == 't' || *start == 'f' || *start == 'n') return 1;
    if (*start == '{' || *start == '[' || read_number(start, &number) < 0) return 0;
    if (!number.whole) return is_shortest_float(&number);
    return stop - start <= 18 && !(number.negative && number.digits == 0); /* -0 is written as 0 */
}

typedef struct {
    const char *text;
    size_t length;
} Name;

/* The texts of the wanted members of one object, as begins and ends; both NULL for one that is absent, and the end NULL
 * for one that is to be read by Python code. -1 where all are. */
static int find_members(const char *at, const char *end, const Name *names, Py_ssize_t count, const char *found[][2])
{
    memset(found, 0, (size_t)count * sizeof *found);
    at = skip_space(at);
    if (*at != '{') return -1;
    at = skip_space(at + 1);
    if (*at == '}') return 0;
    for (;;) {
        int kinds = 0;
        if (*at != '"') return -1;
        const char *name = at + 1;
        if ((at = string_end(name, end, &kinds)) == NULL || kinds & ESCAPED) return -1; /* it may spell any name */
        size_t length = (size_t)(at - name);
        at = skip_space(at + 1);
        if (*at != ':') return -1;
        const char *value = skip_space(at + 1);
        kinds = 0;
        if ((at = skip_value(value, end, 0, &kinds)) == NULL) return -1;
        for (Py_ssize_t i = 0; i < count; i++) {
            if (names[i].length != length || memcmp(names[i].text, name, length) != 0) continue;
            if (found[i][0] != NULL) return -1; /* twice: the last one counts, in Python */
            found[i][0] = value;
            found[i][1] = is_written_so(value, at, kinds) ? at : NULL;
        }
        at = skip_space(at);
        if (*at == '}') return 0;
        if (*at != ',') return -1;
        at = skip_space(at + 1);
    }
}

static PyObject *read_members(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *values, *wanted;
    Name names[MAX_NAMES];
    const char *found[MAX_NAMES][2];
    if (!PyArg_ParseTuple(args, "OO", &values, &wanted)) return NULL;
    if (!PyList_Check(values) || !PyTuple_Check(wanted) || PyTuple_Size(wanted) > MAX_NAMES) Py_RETURN_NONE;
    Py_ssize_t rows = PyList_Size(values), count = PyTuple_Size(wanted);
    PyObject *columns = PyList_New(count);
    for (Py_ssize_t i = 0; columns != NULL && i < count; i++) {
        PyObject *column = PyList_New(rows), *name = PyTuple_GetItem(wanted, i);
        if (column == NULL || PyList_SetItem(columns, i, column) < 0) Py_CLEAR(columns);
        else if (!PyBytes_Check(name)) {
            PyErr_SetString(PyExc_TypeError, "read_members(list of bytes, tuple of bytes)");
            Py_CLEAR(columns);
        } else {
            names[i] = (Name){PyBytes_AsString(name), (size_t)PyBytes_Size(name)};
        }
    }
    for (Py_ssize_t row = 0; columns != NULL && row < rows; row++) { /* calls no Python code, so the list stays as it is */
        PyObject *value = PyList_GetItem(values, row);
        int declined = 1;
        if (PyBytes_Check(value)) {
            const char *text = PyBytes_AsString(value);
            declined = find_members(text, text + PyBytes_Size(value), names, count, found) < 0;
        }
        for (Py_ssize_t i = 0; columns != NULL && i < count; i++) {
            const char *start = found[i][0], *stop = found[i][1];
            int is_read = !declined && (start == NULL || stop != NULL);
            PyObject *text = is_read ? PyBytes_FromStringAndSize(start, stop - start) : Py_NewRef(Py_None);
            if (text == NULL || PyList_SetItem(PyList_GetItem(columns, i), row, text) < 0) Py_CLEAR(columns);
        }
    }
    return columns;
}
