/* Events to columns: the Python class Decoder, used by lstmstream/serve/compiled_decode.py. Included by codec.c.
 *
 * Events are read without Python's lock, so that the threads of Kafka's clients go on meanwhile. What needs Python takes
 * it: a category's text that comes for the first time, what is not usual, and what is declined.
 */

enum { NUMBER, CATEGORY, TIME, KEY, INNER, GUARD, TEXT, KINDS };
enum { NOT_WANTED = -1, DECLINED = -2 };

typedef struct {
    PyObject *bytes; /* of the name, UTF-8 */
    Name name;
    int object;     /* in which it is: 0 is the event, others are fields of the kind INNER */
    int kind;
    int column;   /* of numbers or categories; of INNER the number of the object */
    int size;     /* NUMBER: of an array; 0 is a single one */
    int is_key;   /* a category that is the key too */
    int text;     /* the number of the column that its text goes to; -1 is none */
    uint64_t row; /* the last one that had it */
} Field;

#define GUESSES 96
typedef struct { /* which name stood at this place in the event before */
    char text[30]; /* and the closing quote */
    unsigned char length, object;
    int field;
} Guess;

#define CODES (1 << 12)
typedef struct { /* the code of a category's text, as Python had it before */
    int64_t code;
    unsigned char length; /* with 1 added: 0 is nothing */
    char text[23];
} Code;

typedef struct { /* a text in the event: without a start it is absent, without an end it is left to Python code */
    const char *start, *end;
} Span;

typedef struct { /* a key, until it is made; `made` where it has escapes */
    Span text;
    PyObject *made;
} Key;

typedef struct {
    PyObject_HEAD
    Field *fields;
    int n_fields, n_numbers, n_categories, n_texts, n_slots;
    int has_time, has_key, n_required, busy;
    int *slots; /* a hash table of the fields' numbers, -1 is nothing */
    Guess guesses[GUESSES];
    PyObject *codes; /* a tuple of callables, text to code */
    Code *known_codes; /* [categories, CODES] */
    PyObject *timestamp_ms;
    PyObject *loads; /* bytes of JSON to a value, for strings with escapes */
    Py_ssize_t max_bytes;
    uint64_t row;
} Decoder;

typedef struct { /* the event that is read */
    Decoder *self;
    const char *at, *end;
    float *x;
    int64_t *categories, *time;
    char *absent;
    Key *key;
    Span *texts; /* [texts] */
    int kinds, member, required, odd_keys; /* required: how many of the fields that each event must have */
    Lock lock;
} Event;

static uint32_t hash_text(const char *text, Py_ssize_t length, uint32_t seed)
{
    uint32_t hash = 2166136261u ^ seed; /* FNV-1a */
    for (Py_ssize_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)text[i]) * 16777619u;
    return hash ^ hash >> 15;
}

static int look_up(const Decoder *self, int object, const char *text, Py_ssize_t length)
{
    uint32_t slot = hash_text(text, length, (uint32_t)object);
    for (;; slot++) {
        int field = self->slots[slot & (uint32_t)(self->n_slots - 1)];
        if (field < 0) return NOT_WANTED;
        const Field *found = &self->fields[field];
        if (found->object == object && found->name.length == (size_t)length
            && memcmp(found->name.text, text, (size_t)length) == 0)
            return field;
    }
}

/* The field whose name begins at `at`, which is then after the closing quote. */
static int read_name(Event *event, int object)
{
    Guess *guess = event->member < GUESSES ? &event->self->guesses[event->member] : NULL;
    event->member++;
    if (guess != NULL && guess->object == object && guess->length && event->end - event->at >= guess->length
        && memcmp(event->at, guess->text, guess->length) == 0) {
        event->at += guess->length;
        return guess->field;
    }
    int kinds = 0;
    const char *start = event->at, *stop = string_end(start, event->end, &kinds);
    if (stop == NULL || kinds & ESCAPED) return DECLINED; /* it may spell any name */
    event->kinds |= kinds;
    event->at = stop + 1;
    int field = look_up(event->self, object, start, stop - start);
    Py_ssize_t length = event->at - start;
    if (guess != NULL && kinds == 0 && length <= (Py_ssize_t)sizeof guess->text && object < 256) {
        memcpy(guess->text, start, (size_t)length);
        guess->length = (unsigned char)length;
        guess->object = (unsigned char)object;
        guess->field = field;
    }
    return field;
}

static int read_numbers(Event *event, const Field *field)
{
    Number number;
    const char *at = event->at;
    float *found = event->x + field->column;
    if (*at == 'n') {
        event->at = at + 4;
        return strncmp(at, "null", 4); /* NaN is there already */
    }
    if (field->size == 0) {
        event->at = at;
        if (read_number(at, &number) < 0) return -1;
        event->at = number.end;
        return to_float(&number, found, &event->lock);
    }
    if (*at != '[') return -1;
    for (int i = 0; i < field->size; i++) {
        at = skip_space(at + 1); /* after the bracket or a comma */
        if (*at == 'n') {
            if (strncmp(at, "null", 4) != 0) return -1;
            at += 4;
        } else {
            if (read_number(at, &number) < 0 || to_float(&number, found + i, &event->lock) < 0) return -1;
            at = number.end;
        }
        at = skip_space(at);
        if (*at != (i + 1 < field->size ? ',' : ']')) return -1;
    }
    event->at = at + 1;
    return 0;
}

/* The str between the quotes. */
static PyObject *unescaped(const Decoder *self, const char *text, Py_ssize_t length, int kinds)
{
    if (!(kinds & ESCAPED)) return PyUnicode_DecodeUTF8(text, length, NULL);
    PyObject *quoted = PyBytes_FromStringAndSize(text - 1, length + 2);
    PyObject *found = quoted == NULL ? NULL : PyObject_CallFunctionObjArgs(self->loads, quoted, NULL);
    Py_XDECREF(quoted);
    if (found != NULL && !PyUnicode_Check(found)) Py_CLEAR(found);
    return found;
}

/* Asks Python for the code of a category; -1 with an error set. */
static int ask_code(const Decoder *self, int column, const char *text, Py_ssize_t length, int kinds, int64_t *found)
{
    PyObject *code = NULL, *key = unescaped(self, text, length, kinds);
    if (key != NULL) {
        PyObject *callable = PyTuple_GetItem(self->codes, column);
        code = callable == NULL ? NULL : PyObject_CallFunctionObjArgs(callable, key, NULL);
        Py_DECREF(key);
    }
    if (code == NULL) return -1;
    *found = PyLong_AsLongLong(code);
    Py_DECREF(code);
    return *found == -1 && PyErr_Occurred() ? -1 : 0;
}

/* The code of a category. Escapes may stand in `text`, as in what is remembered. */
static int code_of(Event *event, int column, const char *text, Py_ssize_t length, int kinds)
{
    Code *known = NULL;
    if (length <= (Py_ssize_t)sizeof known->text) {
        known = event->self->known_codes + column * CODES + hash_text(text, length, 0) % CODES;
        if (known->length == length + 1 && memcmp(known->text, text, (size_t)length) == 0) {
            event->categories[column] = known->code;
            return 0;
        }
    }
    int64_t number;
    take_lock(&event->lock);
    int failed = ask_code(event->self, column, text, length, kinds, &number);
    let_lock_go(&event->lock);
    if (failed) return -1;
    event->categories[column] = number;
    if (known != NULL) {
        known->length = (unsigned char)(length + 1);
        known->code = number;
        memcpy(known->text, text, (size_t)length);
    }
    return 0;
}

/* A key with escapes. -1 with an error set. */
static int make_key(Event *event, const char *text, Py_ssize_t length, int kinds)
{
    take_lock(&event->lock);
    PyObject *found = unescaped(event->self, text, length, kinds);
    event->key->made = found == NULL ? NULL : PyUnicode_AsUTF8String(found);
    Py_XDECREF(found);
    let_lock_go(&event->lock);
    return event->key->made == NULL ? -1 : 0;
}

/* A key, a category, or both. */
static int read_text(Event *event, const Field *field)
{
    const char *start = event->at, *stop;
    int kinds = 0;
    if (*start == '"') {
        if ((stop = string_end(++start, event->end, &kinds)) == NULL) return -1;
        event->kinds |= kinds;
        event->at = stop + 1;
    } else if (*start == 'n') {
        event->at = start + 4;
        return field->is_key ? -1 : strncmp(start, "null", 4); /* it is absent already */
    } else {
        Number number;
        if (read_number(start, &number) < 0 || !is_plain_integer(&number)) return -1;
        event->at = stop = number.end;
    }
    Py_ssize_t length = stop - start;
    if (field->is_key) {
        /* `17.0` may mean 17, and `True` true; and who knows with escapes. */
        event->odd_keys |= kinds & ESCAPED;
        event->odd_keys |= memchr(start, '.', (size_t)length) != NULL;
        event->odd_keys |= (length == 4 || length == 5) && strchr("tTfF", *start) != NULL;
        if (!(kinds & ESCAPED)) event->key->text = (Span){start, stop};
        else if (make_key(event, start, length, kinds) < 0) return -1;
    }
    if (field->kind != CATEGORY) return 0;
    event->absent[field->column] = 0;
    return code_of(event, field->column, start, length, kinds);
}

/* Milliseconds as Python has them; the reference to `value` is taken. -1 with an error set. */
static int ask_time(const Decoder *self, PyObject *value, int64_t *found)
{
    if (value == NULL) return -1;
    PyObject *ms = PyObject_CallFunctionObjArgs(self->timestamp_ms, value, NULL);
    Py_DECREF(value);
    if (ms == NULL) return -1;
    *found = PyLong_AsLongLong(ms);
    Py_DECREF(ms);
    return *found == -1 && PyErr_Occurred() ? -1 : 0;
}

static int read_time(Event *event)
{
    const char *start = event->at;
    int failed;
    if (*start == '"') {
        int kinds = 0;
        const char *stop = string_end(++start, event->end, &kinds);
        if (stop == NULL || kinds & ESCAPED) return -1;
        event->kinds |= kinds;
        event->at = stop + 1;
        if (iso_ms(start, stop - start, event->time) == 0) return 0;
        take_lock(&event->lock);
        failed = ask_time(event->self, PyUnicode_DecodeUTF8(start, stop - start, NULL), event->time);
    } else {
        Number number;
        double nearest;
        if (read_number(start, &number) < 0) return -1;
        event->at = number.end;
        if (epoch_ms(&number, event->time) == 0) return 0;
        if (number.whole || nearest_double(&number, &nearest, &event->lock) < 0) return -1;
        take_lock(&event->lock);
        failed = ask_time(event->self, PyFloat_FromDouble(nearest), event->time);
    }
    let_lock_go(&event->lock);
    return failed;
}

/* The value of the field has been read, and ends here. */
static void note_text(Event *event, const Field *field, const char *start)
{
    int kinds = memchr(start, '\\', (size_t)(event->at - start)) != NULL ? ESCAPED : 0;
    event->texts[field->text] = (Span){start, is_written_so(start, event->at, kinds) ? event->at : NULL};
}

static int read_object(Event *event, int object)
{
    if (*event->at != '{') return -1;
    const char *at = skip_space(event->at + 1);
    if (*at == '}') {
        event->at = at + 1;
        return 0;
    }
    for (;;) {
        if (*at != '"') return -1;
        event->at = at + 1;
        int number = read_name(event, object), failed;
        if (number == DECLINED) return -1;
        at = skip_space(event->at);
        if (*at != ':') return -1;
        event->at = skip_space(at + 1);
        if (number == NOT_WANTED) {
            event->at = skip_value(event->at, event->end, 0, &event->kinds);
            failed = event->at == NULL;
        } else {
            Field *field = &event->self->fields[number];
            const char *start = event->at;
            /* Twice: the last one counts, in Python; of a text here, too. */
            if (field->row == event->self->row && field->kind != TEXT) return -1;
            field->row = event->self->row;
            event->required += field->kind == TIME || field->is_key;
            if (field->kind == NUMBER) failed = read_numbers(event, field);
            else if (field->kind == CATEGORY || field->kind == KEY) failed = read_text(event, field);
            else if (field->kind == TIME) failed = read_time(event);
            else if (field->kind == INNER) failed = read_object(event, field->column);
            else if (field->kind == GUARD) failed = -1;
            else failed = (event->at = skip_value(start, event->end, 0, &event->kinds)) == NULL;
            if (!failed && field->text >= 0) note_text(event, field, start);
        }
        if (failed) return -1;
        at = skip_space(event->at);
        if (*at == '}') {
            event->at = at + 1;
            return 0;
        }
        if (*at != ',') return -1;
        at = skip_space(at + 1);
    }
}

/* 0, or -1 where it is declined or a Python error is set. */
static int read_event(Event *event, const char *start, const char *end)
{
    Decoder *self = event->self;
    event->at = skip_space(start);
    event->end = end;
    event->kinds = event->member = event->required = 0;
    self->row++;
    for (int i = 0; i < self->n_numbers; i++) event->x[i] = NAN;
    for (int i = 0; i < self->n_categories; i++) event->categories[i] = 0, event->absent[i] = 1;
    if (read_object(event, 0) < 0 || skip_space(event->at) != event->end) return -1;
    if (event->required != self->n_required) return -1;
    return event->kinds & NOT_ASCII && !is_utf8(start, end) ? -1 : 0;
}

#define DECLINED_SHARE 16 /* a batch in which more than one of so many events is declined is declined as a whole */

/* The length of `value` and `key` together; -1 where one is not plain bytes. */
static Py_ssize_t size_of(PyObject *value, PyObject *key)
{
    if (!PyBytes_CheckExact(value)) return -1;
    if (key == Py_None) return PyBytes_Size(value);
    return PyBytes_Check(key) ? PyBytes_Size(value) + PyBytes_Size(key) : -1;
}

/* Appends a row that is declined. -1 where there are too many for the others to be worth it, or an error is to be seen. */
static int decline(PyObject *declined, Py_ssize_t row, Py_ssize_t count)
{
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError)) return -1;
        PyErr_Clear(); /* of a Python function that was called, or not UTF-8: it happens again, where it is handled */
    }
    if (PyList_Size(declined) >= count / DECLINED_SHARE) return -1;
    PyObject *number = PyLong_FromSsize_t(row);
    int failed = number == NULL || PyList_Append(declined, number) < 0;
    Py_XDECREF(number);
    return -failed;
}

typedef struct { /* what is read of a batch before it becomes objects */
    Span *values; /* [N] without a start where the event is declined */
    Key *keys;    /* [N] */
    Span *texts;  /* [N, texts] */
} Batch;

static int open_batch(Batch *batch, const Decoder *self, Py_ssize_t count)
{
    batch->values = PyMem_Calloc((size_t)count + 1, sizeof(Span));
    batch->keys = PyMem_Calloc((size_t)count + 1, sizeof(Key));
    batch->texts = PyMem_Calloc((size_t)count * (size_t)self->n_texts + 1, sizeof(Span));
    if (batch->values != NULL && batch->keys != NULL && batch->texts != NULL) return 0;
    PyErr_NoMemory();
    return -1;
}

static void close_batch(Batch *batch, Py_ssize_t count)
{
    for (Py_ssize_t row = 0; batch->keys != NULL && row < count; row++) Py_XDECREF(batch->keys[row].made);
    PyMem_Free(batch->values);
    PyMem_Free(batch->keys);
    PyMem_Free(batch->texts);
}

/* Where the values are that are to be read. */
static int find_values(const Decoder *self, PyObject *values, PyObject *record_keys, Span *found)
{
    for (Py_ssize_t row = 0; row < PyTuple_Size(values); row++) {
        PyObject *value = PyTuple_GetItem(values, row), *record_key = PyList_GetItem(record_keys, row);
        if (value == NULL || record_key == NULL) return -1;
        Py_ssize_t size = size_of(value, record_key);
        if (size < 0 || size > self->max_bytes) continue;
        found[row].start = PyBytes_AsString(value);
        found[row].end = found[row].start + PyBytes_Size(value);
    }
    return 0;
}

/* All events. -1 where too many are declined, or an error is set. */
static int read_values(Event *event, const Batch *batch, Py_ssize_t count, const Py_buffer *buffers, PyObject *declined)
{
    const Decoder *self = event->self;
    int failed = 0;
    let_lock_go(&event->lock);
    for (Py_ssize_t row = 0; row < count && !failed; row++) {
        event->x = (float *)buffers[0].buf + row * self->n_numbers;
        event->categories = (int64_t *)buffers[1].buf + row * self->n_categories;
        event->absent = (char *)buffers[2].buf + row * self->n_categories;
        event->time = (int64_t *)buffers[3].buf + row;
        event->key = &batch->keys[row];
        event->texts = batch->texts + row * self->n_texts;
        Span *value = &batch->values[row];
        if (value->start != NULL && read_event(event, value->start, value->end) == 0) continue;
        value->start = NULL;
        take_lock(&event->lock);
        failed = decline(declined, row, count);
        let_lock_go(&event->lock);
    }
    take_lock(&event->lock);
    return failed;
}

/* The list of keys; None where the event is declined. */
static PyObject *make_keys(const Decoder *self, const Batch *batch, Py_ssize_t count)
{
    PyObject *keys = PyList_New(self->has_key ? count : 0);
    for (Py_ssize_t row = 0; keys != NULL && self->has_key && row < count; row++) {
        const Key *key = &batch->keys[row];
        PyObject *made;
        if (batch->values[row].start == NULL) made = Py_NewRef(Py_None);
        else if (key->made != NULL) made = Py_NewRef(key->made);
        else made = PyBytes_FromStringAndSize(key->text.start, key->text.end - key->text.start);
        if (made == NULL || PyList_SetItem(keys, row, made) < 0) Py_CLEAR(keys);
    }
    return keys;
}

/* A list of texts for each column: None where it is left to Python code, nothing where the event has none. */
static PyObject *make_texts(const Decoder *self, const Batch *batch, Py_ssize_t count)
{
    PyObject *columns = PyList_New(self->n_texts);
    for (int i = 0; columns != NULL && i < self->n_texts; i++) {
        PyObject *column = PyList_New(count);
        for (Py_ssize_t row = 0; column != NULL && row < count; row++) {
            const Span *span = &batch->texts[row * self->n_texts + i];
            int is_read = batch->values[row].start != NULL && (span->start == NULL || span->end != NULL);
            PyObject *text = is_read ? PyBytes_FromStringAndSize(span->start, span->end - span->start) : Py_NewRef(Py_None);
            if (text == NULL || PyList_SetItem(column, row, text) < 0) Py_CLEAR(column);
        }
        if (column == NULL || PyList_SetItem(columns, i, column) < 0) Py_CLEAR(columns);
    }
    return columns;
}

static PyObject *read_events(Decoder *self, PyObject *values, PyObject *record_keys, Py_buffer *buffers)
{
    Py_ssize_t count = PyTuple_Size(values);
    PyObject *declined = PyList_New(0), *keys = NULL, *texts = NULL, *found = NULL;
    Event event = {.self = self};
    Batch batch = {NULL, NULL, NULL};
    int failed = declined == NULL || open_batch(&batch, self, count) < 0
                 || find_values(self, values, record_keys, batch.values) < 0;
    if (!failed) {
        failed = read_values(&event, &batch, count, buffers, declined);
        if (failed && !PyErr_Occurred()) found = Py_NewRef(Py_None);
    }
    if (!failed && (keys = make_keys(self, &batch, count)) != NULL && (texts = make_texts(self, &batch, count)) != NULL)
        found = Py_BuildValue("(OOOO)", keys, event.odd_keys ? Py_True : Py_False, declined, texts);
    close_batch(&batch, count);
    Py_XDECREF(keys);
    Py_XDECREF(texts);
    Py_XDECREF(declined);
    return found;
}

static PyObject *Decoder_decode(PyObject *object, PyObject *args)
{
    Decoder *self = (Decoder *)object;
    PyObject *values, *record_keys, *arrays[4], *found = NULL;
    Py_buffer buffers[4];
    int held = 0;
    if (!PyArg_ParseTuple(args, "OOOOOO", &values, &record_keys, &arrays[0], &arrays[1], &arrays[2], &arrays[3]))
        return NULL;
    if (!PyList_Check(values) || !PyList_Check(record_keys) || self->busy) Py_RETURN_NONE;
    if ((values = PyList_AsTuple(values)) == NULL) return NULL; /* other threads run, and may change the list */
    Py_ssize_t count = PyTuple_Size(values);
    Py_ssize_t widths[4] = {self->n_numbers * 4, self->n_categories * 8, self->n_categories, 8 * self->has_time};
    self->busy = 1;
    for (; held < 4; held++) {
        if (PyObject_GetBuffer(arrays[held], &buffers[held], PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0) break;
        if (buffers[held].len < count * widths[held]) {
            held++;
            PyErr_SetString(PyExc_ValueError, "an array is too small");
            break;
        }
    }
    if (!PyErr_Occurred()) found = read_events(self, values, record_keys, buffers);
    while (held > 0) PyBuffer_Release(&buffers[--held]);
    Py_DECREF(values);
    self->busy = 0;
    return found;
}


static int read_fields(Decoder *self, PyObject *fields)
{
    self->n_fields = (int)PyList_Size(fields);
    for (self->n_slots = 8; self->n_slots < 4 * self->n_fields; self->n_slots *= 2) {}
    self->fields = PyMem_Calloc((size_t)self->n_fields + 1, sizeof(Field));
    self->slots = PyMem_Calloc((size_t)self->n_slots, sizeof(int));
    if (self->fields == NULL || self->slots == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (int i = 0; i < self->n_slots; i++) self->slots[i] = -1;
    for (int i = 0; i < self->n_fields; i++) {
        Field *field = &self->fields[i];
        PyObject *name;
        if (!PyArg_ParseTuple(PyList_GetItem(fields, i), "Siiiiii", &name, &field->object, &field->kind, &field->column,
                              &field->size, &field->is_key, &field->text))
            return -1;
        Py_INCREF(name);
        field->bytes = name;
        field->name = (Name){PyBytes_AsString(name), (size_t)PyBytes_Size(name)};
        int columns = field->kind == NUMBER ? self->n_numbers : self->n_categories, last = field->column + 1;
        if (field->kind == NUMBER && field->size > 1) last = field->column + field->size;
        int has_columns = field->kind == NUMBER || field->kind == CATEGORY;
        if (field->kind < 0 || field->kind >= KINDS || field->size < 0
            || (has_columns && (field->column < 0 || last > columns)) || field->text >= self->n_texts) {
            PyErr_SetString(PyExc_ValueError, "a field has no column");
            return -1;
        }
        self->has_time |= field->kind == TIME;
        self->has_key |= field->is_key;
        self->n_required += field->kind == TIME || field->is_key;
        uint32_t slot = hash_text(PyBytes_AsString(name), PyBytes_Size(name), (uint32_t)field->object);
        while (self->slots[slot & (uint32_t)(self->n_slots - 1)] >= 0) slot++;
        self->slots[slot & (uint32_t)(self->n_slots - 1)] = i;
    }
    return 0;
}

static PyObject *Decoder_new(PyTypeObject *type, PyObject *args, PyObject *options)
{
    PyObject *fields, *codes, *timestamp_ms, *loads;
    Py_ssize_t max_bytes;
    int n_numbers, n_texts;
    if (options != NULL && PyDict_Size(options)) {
        PyErr_SetString(PyExc_TypeError, "Decoder takes no keywords");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "OiiOOOn", &fields, &n_numbers, &n_texts, &codes, &timestamp_ms, &loads, &max_bytes))
        return NULL;
    if (!PyList_Check(fields) || !PyTuple_Check(codes) || n_numbers < 0 || n_texts < 0) {
        PyErr_SetString(PyExc_TypeError,
                        "Decoder(list of fields, numbers, texts, tuple of codes, timestamp_ms, loads, max_bytes)");
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Decoder *self = (Decoder *)allocate(type, 0); /* all zeros */
    if (self == NULL) return NULL;
    Py_INCREF(codes);
    self->codes = codes;
    Py_INCREF(timestamp_ms);
    self->timestamp_ms = timestamp_ms;
    Py_INCREF(loads);
    self->loads = loads;
    self->n_numbers = n_numbers;
    self->n_texts = n_texts;
    self->n_categories = (int)PyTuple_Size(codes);
    self->max_bytes = max_bytes;
    self->known_codes = PyMem_Calloc((size_t)self->n_categories * CODES + 1, sizeof(Code));
    if (self->known_codes == NULL) PyErr_NoMemory();
    if (self->known_codes == NULL || read_fields(self, fields) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void Decoder_dealloc(PyObject *object)
{
    Decoder *self = (Decoder *)object;
    PyTypeObject *type = Py_TYPE(object);
    for (int i = 0; self->fields != NULL && i < self->n_fields; i++) Py_XDECREF(self->fields[i].bytes);
    PyMem_Free(self->fields);
    PyMem_Free(self->slots);
    PyMem_Free(self->known_codes);
    Py_XDECREF(self->codes);
    Py_XDECREF(self->timestamp_ms);
    Py_XDECREF(self->loads);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyMethodDef decoder_methods[] = {
    {"decode", Decoder_decode, METH_VARARGS,
     "decode(values, record_keys, x, categories, absent, timestamps) -> (keys, odd_keys, declined, texts) or None\n\n"
     "Fills the arrays float32 [N, F], int64 [N, C], bool [N, C], int64 [N]. keys: empty without a field for them.\n"
     "declined: rows that are not read; the arrays hold anything there. texts: a list for each, as of read_members."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot decoder_slots[] = {
    {Py_tp_new, Decoder_new},
    {Py_tp_dealloc, Decoder_dealloc},
    {Py_tp_methods, decoder_methods},
    {0, NULL},
};

static PyType_Spec decoder_spec = {
    .name = "lstmstream._codec.Decoder",
    .basicsize = sizeof(Decoder),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = decoder_slots,
};
