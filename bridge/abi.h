#ifndef PGKEEP_ABI_H
#define PGKEEP_ABI_H

/*
 * What Bacula's File Daemon and its plugins say to each other in memory: interface 23, that of Bacula 15.0. These are
 * declarations of our own, no header of Bacula is used; the assertions at the end hold every offset.
 *
 * struct stat is the C library's, 144 bytes on x86-64 and 128 on arm64, so what follows it moves with its size.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

enum {
	INTERFACE_VERSION = 23,
	BACULA_FUNCTIONS_BYTES = 168
};

#define PLUGIN_MAGIC "*FDPluginData*"

/* What callbacks return, to either side. */
enum rc {
	RC_OK = 0,
	RC_STOP = 1,
	RC_ERROR = 2,
	RC_MORE = 3,
	RC_SEEN = 5,
	RC_CORE = 6,
	RC_SKIP = 7,
	RC_NOTHING_MORE = 9999
};

/* Types of job messages. 1 crashes the daemon and 12 ends it, so they have no name here. */
enum message_type {
	MESSAGE_EVENTS = 3,
	MESSAGE_FATAL = 4,
	MESSAGE_ERROR = 5,
	MESSAGE_WARNING = 6,
	MESSAGE_INFO = 7,
	MESSAGE_SAVED = 8,
	MESSAGE_NOT_SAVED = 9,
	MESSAGE_SKIPPED = 10,
	MESSAGE_MOUNT = 11,
	MESSAGE_RESTORED = 14
};

enum file_type {
	FILE_LINK_SAVED = 1,
	FILE_EMPTY = 2,
	FILE_REGULAR = 3,
	FILE_SYMLINK = 4,
	FILE_DIRECTORY = 5,
	FILE_RESTORE_OBJECT = 25,
	FILE_PLUGIN_CONFIG = 27,
	FILE_PLUGIN_CONFIG_FILLED = 28,
	FILE_PLUGIN_OBJECT = 29
};

enum create_status {
	CREATE_SKIP = 1,
	CREATE_ERROR = 2,
	CREATE_EXTRACT = 3
};

enum io_function {
	IO_OPEN = 1,
	IO_READ = 2,
	IO_WRITE = 3,
	IO_CLOSE = 4,
	IO_SEEK = 5
};

enum xacl_function {
	XACL_ACL_BACKUP = 1,
	XACL_ACL_RESTORE = 2,
	XACL_XATTR_BACKUP = 3,
	XACL_XATTR_RESTORE = 4
};

enum {
	STREAM_ATTRIBUTES_UPDATE = 37
};

enum event_type {
	EVENT_JOB_START = 1,
	EVENT_JOB_END = 2,
	EVENT_START_BACKUP_JOB = 3,
	EVENT_END_BACKUP_JOB = 4,
	EVENT_START_RESTORE_JOB = 5,
	EVENT_END_RESTORE_JOB = 6,
	EVENT_BACKUP_COMMAND = 9,
	EVENT_RESTORE_COMMAND = 10,
	EVENT_ESTIMATE_COMMAND = 11,
	EVENT_LEVEL = 12,
	EVENT_SINCE = 13,
	EVENT_CANCEL = 14,
	EVENT_RESTORE_OBJECT = 18,
	EVENT_PLUGIN_COMMAND = 20,
	EVENT_OPTION_PLUGIN = 23,
	EVENT_HANDLE_BACKUP_FILE = 24,
	EVENT_FEATURES = 26,
	EVENT_PLUGIN_OPTIONS = 28
};

enum variable {
	VARIABLE_JOB_ID = 1,
	VARIABLE_FD_NAME = 2,
	VARIABLE_LEVEL = 3,
	VARIABLE_TYPE = 4,
	VARIABLE_CLIENT = 5,
	VARIABLE_JOB_NAME = 6,
	VARIABLE_JOB_STATUS = 7,
	VARIABLE_ACCURATE = 9,
	VARIABLE_FILE_SEEN = 10,
	VARIABLE_WORKING_DIR = 13,
	VARIABLE_PLUGIN_DIR = 14,
	VARIABLE_WHERE = 15,
	VARIABLE_REGEX_WHERE = 16,
	VARIABLE_EXE_PATH = 17,
	VARIABLE_VERSION = 18,
	VARIABLE_PREV_JOB_NAME = 20,
	VARIABLE_FILE_INDEX = 23,
	VARIABLE_REPLACE = 24,
	VARIABLE_IS_CANCELED = 27,
	VARIABLE_SYSCONFIG_PATH = 28
};

struct bacula_info {
	uint32_t size;
	uint32_t version;
};

struct bacula_context {
	void *core;             /* the daemon's own, never touched */
	void *plugin;           /* ours: struct job */
};

struct bacula_event {
	uint32_t type;
};

struct restore_object {
	char *name;
	char *content;
	int32_t length;
	int32_t index;
	int32_t compression;
};

struct plugin_object {
	char *path;
	char *plugin_name;
	char *category;
	char *type;
	char *name;
	char *source;
	char *uuid;
	uint64_t size;
	int32_t status;
	uint32_t count;
};

struct save_packet {
	int32_t pkt_size;
	char *fname;
	char *snap_fname;
	int32_t plugin_mode;
	char *link;
	struct stat statp;
	int32_t type;
	uint64_t flags;
	bool no_read;
	bool portable;
	bool accurate_found;
	bool do_dedup;
	bool stat_update;
	char *cmd;
	struct restore_object restore_object;
	struct plugin_object plugin_object;
	void *metadata;
	uint32_t delta_seq;
	int32_t link_fi;
	int32_t pkt_end;
};

struct restore_packet {
	int32_t pkt_size;
	int32_t plugin_mode;
	int32_t stream;
	int32_t data_stream;
	int32_t type;
	int32_t file_index;
	int32_t link_fi;
	uint32_t uid;
	struct stat statp;
	const char *attr_ex;
	const char *ofname;
	const char *olname;
	const char *where;
	const char *regex_where;
	int32_t replace;
	int32_t create_status;
	uint32_t delta_seq;
	int32_t pkt_end;
};

struct restore_list_packet {
	int32_t pkt_size;
	int32_t plugin_mode;
	int32_t file_index;
	int32_t link_fi;
	struct stat statp;
	const char *attr_ex;
	const char *ofname;
	uint32_t delta_seq;
	const char *checksum;
	int32_t pkt_end;
};

struct restore_object_packet {
	int32_t pkt_size;
	char *object_name;
	char *object;
	char *plugin_name;
	int32_t object_type;
	int32_t object_len;
	int32_t object_full_len;
	int32_t object_index;
	int32_t object_compression;
	int32_t stream;
	uint32_t job_id;
	int32_t pkt_end;
};

struct io_packet {
	int32_t pkt_size;
	int32_t func;
	int32_t count;
	int32_t flags;
	uint32_t mode;
	char *buf;
	const char *fname;
	int32_t status;
	int32_t io_errno;
	int32_t lerror;
	int32_t whence;
	int64_t offset;
	bool win32;
	int32_t pkt_end;
};

struct xacl_packet {
	int32_t pkt_size;
	int32_t func;
	int32_t count;
	char *content;
	int32_t pkt_end;
};

struct accurate_packet {
	char *fname;
	struct stat statp;
	char *checksum;
	int32_t delta_seq;
	bool seen;
};

struct query_packet {
	int32_t pkt_size;
	char *parameter;
	char *command;
	char *api_opts;
	char *result;
	int32_t pkt_end;
};

struct stream_packet {
	int32_t pkt_size;
	int32_t stream;
	int32_t pkt_end;
};

/* From the daemon. */
struct bacula_functions {
	uint32_t size;
	uint32_t version;
	enum rc (*register_events)(struct bacula_context *, ...);
	enum rc (*get_value)(struct bacula_context *, int, void *);
	enum rc (*set_value)(struct bacula_context *, int, void *);
	enum rc (*job_message)(struct bacula_context *, const char *file, int line, int type, int64_t mtime,
	    const char *format, ...) __attribute__((format(printf, 6, 7)));
	enum rc (*debug_message)(struct bacula_context *, const char *file, int line, int level,
	    const char *format, ...) __attribute__((format(printf, 5, 6)));
	void *(*malloc)(struct bacula_context *, const char *file, int line, size_t);
	void (*free)(struct bacula_context *, const char *file, int line, void *);
	enum rc (*add_exclude)(struct bacula_context *, const char *);
	enum rc (*add_include)(struct bacula_context *, const char *);
	enum rc (*add_options)(struct bacula_context *, const char *);
	enum rc (*add_regex)(struct bacula_context *, const char *, int);
	enum rc (*add_wild)(struct bacula_context *, const char *, int);
	enum rc (*new_options)(struct bacula_context *);
	enum rc (*new_include)(struct bacula_context *);
	enum rc (*new_pre_include)(struct bacula_context *);
	enum rc (*check_changes)(struct bacula_context *, struct save_packet *);
	enum rc (*accept_file)(struct bacula_context *, struct save_packet *);
	enum rc (*get_accurate_attribs)(struct bacula_context *, struct accurate_packet *);
	enum rc (*add_plugin)(struct bacula_context *, const char *);
	enum rc (*add_file_event)(struct bacula_context *, void *);
};

struct plugin_info {
	uint32_t size;
	uint32_t version;
	const char *magic;
	const char *licence;
	const char *author;
	const char *date;
	const char *plugin_version;
	const char *description;
};

/* To the daemon, which never looks at size and version. */
struct plugin_functions {
	uint32_t size;
	uint32_t version;
	enum rc (*new_plugin)(struct bacula_context *);
	enum rc (*free_plugin)(struct bacula_context *);
	enum rc (*get_plugin_value)(struct bacula_context *, int, void *);
	enum rc (*set_plugin_value)(struct bacula_context *, int, void *);
	enum rc (*handle_event)(struct bacula_context *, struct bacula_event *, void *);
	enum rc (*start_backup_file)(struct bacula_context *, struct save_packet *);
	enum rc (*end_backup_file)(struct bacula_context *);
	enum rc (*start_restore_file)(struct bacula_context *, const char *);
	enum rc (*end_restore_file)(struct bacula_context *);
	enum rc (*plugin_io)(struct bacula_context *, struct io_packet *);
	enum rc (*create_file)(struct bacula_context *, struct restore_packet *);
	enum rc (*set_file_attributes)(struct bacula_context *, struct restore_packet *);
	enum rc (*check_file)(struct bacula_context *, char *);
	enum rc (*handle_xacl)(struct bacula_context *, struct xacl_packet *);
	enum rc (*restore_file_list)(struct bacula_context *, struct restore_list_packet *);
	enum rc (*check_stream)(struct bacula_context *, struct stream_packet *);
	enum rc (*query_parameter)(struct bacula_context *, struct query_packet *);
	enum rc (*metadata_restore)(struct bacula_context *, void *);
	enum rc (*start_verify_file)(struct bacula_context *, struct restore_packet *);
	enum rc (*end_verify_file)(struct bacula_context *);
};

/* A packet of the daemon is only used when both ends are where this interface has them. */
#define IS_WHOLE(packet) ((packet)->pkt_size == (int32_t)sizeof(*(packet)) && \
	(packet)->pkt_end == (int32_t)sizeof(*(packet)))

#define HOLD(what) _Static_assert(what, #what)
#define AT(type, field, where) HOLD(offsetof(struct type, field) == (where))

#if defined(__x86_64__)
HOLD(sizeof(struct stat) == 144);
#elif defined(__aarch64__)
HOLD(sizeof(struct stat) == 128);
#else
#error "the layout of Bacula's packets is known for x86-64 and arm64 only"
#endif
HOLD(sizeof(enum rc) == 4);
HOLD(sizeof(bool) == 1);
HOLD(sizeof(void *) == 8);

HOLD(sizeof(struct bacula_info) == 8);
HOLD(sizeof(struct bacula_context) == 16);
AT(bacula_context, plugin, 8);
HOLD(sizeof(struct bacula_event) == 4);

HOLD(sizeof(struct restore_object) == 32);
AT(restore_object, content, 8);
AT(restore_object, length, 16);
AT(restore_object, index, 20);
AT(restore_object, compression, 24);

HOLD(sizeof(struct plugin_object) == 72);
AT(plugin_object, plugin_name, 8);
AT(plugin_object, category, 16);
AT(plugin_object, type, 24);
AT(plugin_object, name, 32);
AT(plugin_object, source, 40);
AT(plugin_object, uuid, 48);
AT(plugin_object, size, 56);
AT(plugin_object, status, 64);
AT(plugin_object, count, 68);

#define SAVE(field, where) AT(save_packet, field, (where) - 184 + 40 + sizeof(struct stat))
HOLD(sizeof(struct save_packet) == 344 - 144 + sizeof(struct stat));
AT(save_packet, fname, 8);
AT(save_packet, snap_fname, 16);
AT(save_packet, plugin_mode, 24);
AT(save_packet, link, 32);
AT(save_packet, statp, 40);
SAVE(type, 184);
SAVE(flags, 192);
SAVE(no_read, 200);
SAVE(portable, 201);
SAVE(accurate_found, 202);
SAVE(do_dedup, 203);
SAVE(stat_update, 204);
SAVE(cmd, 208);
SAVE(restore_object, 216);
SAVE(plugin_object, 248);
SAVE(metadata, 320);
SAVE(delta_seq, 328);
SAVE(link_fi, 332);
SAVE(pkt_end, 336);

#define RESTORE(field, where) AT(restore_packet, field, (where) - 176 + 32 + sizeof(struct stat))
HOLD(sizeof(struct restore_packet) == 232 - 144 + sizeof(struct stat));
AT(restore_packet, plugin_mode, 4);
AT(restore_packet, stream, 8);
AT(restore_packet, data_stream, 12);
AT(restore_packet, type, 16);
AT(restore_packet, file_index, 20);
AT(restore_packet, link_fi, 24);
AT(restore_packet, uid, 28);
AT(restore_packet, statp, 32);
RESTORE(attr_ex, 176);
RESTORE(ofname, 184);
RESTORE(olname, 192);
RESTORE(where, 200);
RESTORE(regex_where, 208);
RESTORE(replace, 216);
RESTORE(create_status, 220);
RESTORE(delta_seq, 224);
RESTORE(pkt_end, 228);

#define LISTED(field, where) AT(restore_list_packet, field, (where) - 160 + 16 + sizeof(struct stat))
HOLD(sizeof(struct restore_list_packet) == 200 - 144 + sizeof(struct stat));
AT(restore_list_packet, file_index, 8);
AT(restore_list_packet, link_fi, 12);
AT(restore_list_packet, statp, 16);
LISTED(attr_ex, 160);
LISTED(ofname, 168);
LISTED(delta_seq, 176);
LISTED(checksum, 184);
LISTED(pkt_end, 192);

HOLD(sizeof(struct restore_object_packet) == 64);
AT(restore_object_packet, object_name, 8);
AT(restore_object_packet, object, 16);
AT(restore_object_packet, plugin_name, 24);
AT(restore_object_packet, object_type, 32);
AT(restore_object_packet, object_len, 36);
AT(restore_object_packet, object_full_len, 40);
AT(restore_object_packet, object_index, 44);
AT(restore_object_packet, object_compression, 48);
AT(restore_object_packet, stream, 52);
AT(restore_object_packet, job_id, 56);
AT(restore_object_packet, pkt_end, 60);

HOLD(sizeof(struct io_packet) == 72);
AT(io_packet, func, 4);
AT(io_packet, count, 8);
AT(io_packet, flags, 12);
AT(io_packet, mode, 16);
AT(io_packet, buf, 24);
AT(io_packet, fname, 32);
AT(io_packet, status, 40);
AT(io_packet, io_errno, 44);
AT(io_packet, lerror, 48);
AT(io_packet, whence, 52);
AT(io_packet, offset, 56);
AT(io_packet, win32, 64);
AT(io_packet, pkt_end, 68);

HOLD(sizeof(struct xacl_packet) == 32);
AT(xacl_packet, func, 4);
AT(xacl_packet, count, 8);
AT(xacl_packet, content, 16);
AT(xacl_packet, pkt_end, 24);

HOLD(sizeof(struct accurate_packet) == 168 - 144 + sizeof(struct stat));
AT(accurate_packet, statp, 8);
AT(accurate_packet, checksum, 8 + sizeof(struct stat));
AT(accurate_packet, delta_seq, 16 + sizeof(struct stat));
AT(accurate_packet, seen, 20 + sizeof(struct stat));

HOLD(sizeof(struct query_packet) == 48);
AT(query_packet, parameter, 8);
AT(query_packet, command, 16);
AT(query_packet, api_opts, 24);
AT(query_packet, result, 32);
AT(query_packet, pkt_end, 40);

HOLD(sizeof(struct stream_packet) == 12);
AT(stream_packet, stream, 4);
AT(stream_packet, pkt_end, 8);

HOLD(sizeof(struct bacula_functions) == BACULA_FUNCTIONS_BYTES);
AT(bacula_functions, register_events, 8);
AT(bacula_functions, job_message, 32);
AT(bacula_functions, free, 56);
AT(bacula_functions, check_changes, 128);
AT(bacula_functions, get_accurate_attribs, 144);
AT(bacula_functions, add_file_event, 160);

HOLD(sizeof(struct plugin_info) == 56);
AT(plugin_info, magic, 8);
AT(plugin_info, description, 48);

HOLD(sizeof(struct plugin_functions) == 168);
AT(plugin_functions, new_plugin, 8);
AT(plugin_functions, handle_event, 40);
AT(plugin_functions, plugin_io, 80);
AT(plugin_functions, check_file, 104);
AT(plugin_functions, restore_file_list, 120);
AT(plugin_functions, query_parameter, 136);
AT(plugin_functions, end_verify_file, 160);

#undef HOLD
#undef AT
#undef SAVE
#undef RESTORE
#undef LISTED

#endif
