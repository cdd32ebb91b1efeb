#ifndef BERTH_FILTER_WRAP_H
#define BERTH_FILTER_WRAP_H

#include <stddef.h>

// Writes what the next exported filter was made from, and the filter, to fd,
// then ends the process: the filter is never loaded here.
void berth_filter_record(int fd);

// Gives the filter that belongs to a recorded making. Both stay in place for
// the life of the process.
void berth_filter_use(const void *making, size_t making_size, const void *program, size_t program_size);

#endif
