// Package store remembers: one SQLite database under the data root holds
// Berth's own objects as JSON by id. A Put that has returned is on disk.
// It knows how to keep values, not what they mean.
package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/core/volume"
	"github.com/berth-project/berth/lib/fault"
)

// migrations run once each, in order; their number is the schema's version.
var migrations = []string{
	`CREATE TABLE object (kind TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, id)) WITHOUT ROWID, STRICT;`,
}

// Kinds of objects.
const (
	kindContainer = "container"
	kindNetwork   = "network"
	kindVolume    = "volume"
	kindMeta      = "meta"
	kindApp       = "app"
	kindRevision  = "revision" // id: application, "/", number in six digits
	kindJob       = "job"      // id: application, "/", job
)

// batchLimit bounds the writes that share one transaction.
const batchLimit = 256

// Store is the open database. All methods are safe for concurrent use; writes
// that come together share one transaction, and so one wait for the disk.
type Store struct {
	db     *sql.DB
	log    *slog.Logger
	writes chan write
	synced bool // commits wait for the disk; only the writer's goroutine knows it
	done   sync.WaitGroup
	mu     sync.RWMutex // held for reading while a write is handed over
	closed bool
}

type write struct {
	kind, id string
	body     []byte  // nil deletes
	note     bool    // need not be on disk
	with     []write // in the same transaction
	result   chan error
}

// Open opens or makes the database at path.
func Open(ctx context.Context, path string, log *slog.Logger) (*Store, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	pragmas := url.Values{"_pragma": {"journal_mode(WAL)", "synchronous(FULL)", "busy_timeout(5000)"}}
	db, err := sql.Open("sqlite", "file:"+path+"?"+pragmas.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1) // one writer; values are small and callers keep them in memory
	s := &Store{db: db, log: log, synced: true, writes: make(chan write, batchLimit)}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), db.Close())
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.done.Add(1)
	go s.commit()
	return s, nil
}

func (s *Store) migrate(ctx context.Context) error {
	var version int
	if err := s.db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version > len(migrations) {
		return fmt.Errorf("the database was written by a newer Berth (schema %d, this one knows %d)", version, len(migrations))
	}
	for ; version < len(migrations); version++ {
		tx, err := s.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, migrations[version])
		if err == nil {
			_, err = tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version+1))
		}
		if err != nil {
			return errors.Join(err, tx.Rollback())
		}
		if err := tx.Commit(); err != nil {
			return err
		}
	}
	return nil
}

// Close finishes what was handed over and closes the database.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.writes)
	s.mu.Unlock()
	s.done.Wait()
	return s.db.Close()
}

// commit writes what has gathered while the last transaction ran.
func (s *Store) commit() {
	defer s.done.Done()
	for first := range s.writes {
		batch := []write{first}
	gather:
		for len(batch) < batchLimit {
			select {
			case w, ok := <-s.writes:
				if !ok {
					break gather
				}
				batch = append(batch, w)
			default:
				break gather
			}
		}
		err := s.apply(batch)
		for _, w := range batch {
			w.result <- err
		}
	}
}

func (s *Store) apply(batch []write) error {
	if err := s.wait(slices.ContainsFunc(batch, func(w write) bool { return !w.note })); err != nil {
		return err
	}
	tx, err := s.db.Begin()
	if err != nil {
		return err
	}
	for i := 0; i < len(batch); i++ {
		w := batch[i]
		batch = append(batch, w.with...)
		if w.body == nil {
			_, err = tx.Exec("DELETE FROM object WHERE kind = ? AND id = ?", w.kind, w.id)
		} else {
			_, err = tx.Exec("INSERT INTO object (kind, id, body) VALUES (?, ?, ?) ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body", w.kind, w.id, w.body)
		}
		if err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	return tx.Commit()
}

// wait says whether the next commits are to wait for the disk. In WAL mode a
// database is whole after a power cut either way (sqlite.org/pragma, synchronous),
// and a commit that waits brings those before it to the disk too.
func (s *Store) wait(disk bool) error {
	if disk == s.synced {
		return nil
	}
	mode := map[bool]string{true: "FULL", false: "NORMAL"}[disk]
	if _, err := s.db.Exec("PRAGMA synchronous = " + mode); err != nil {
		return err
	}
	s.synced = disk
	return nil
}

func (s *Store) put(ctx context.Context, kind, id string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.write(ctx, write{kind: kind, id: id, body: body, result: make(chan error, 1)})
}

func (s *Store) remove(ctx context.Context, kind, id string) error {
	return s.write(ctx, write{kind: kind, id: id, result: make(chan error, 1)})
}

func (s *Store) write(ctx context.Context, w write) error {
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return errors.New("the store is closed")
	}
	select {
	case s.writes <- w:
	case <-ctx.Done():
		s.mu.RUnlock()
		return ctx.Err()
	}
	s.mu.RUnlock()
	// Handed over, it will be written: its result is waited for even if the caller goes.
	if err := <-w.result; err != nil {
		return fmt.Errorf("store %s %s: %w", w.kind, w.id, err)
	}
	return nil
}

func all[T any](ctx context.Context, s *Store, kind string) ([]T, error) {
	return some[T](ctx, s, "SELECT body FROM object WHERE kind = ? ORDER BY id", kind)
}

// some reads bodies; the kind is the first of args.
func some[T any](ctx context.Context, s *Store, query string, args ...any) ([]T, error) {
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []T
	for rows.Next() {
		var body []byte
		if err := rows.Scan(&body); err != nil {
			return nil, err
		}
		var v T
		if err := json.Unmarshal(body, &v); err != nil {
			return nil, fmt.Errorf("read %s: %w", args[0], err)
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

// PutContainer remembers a container.
func (s *Store) PutContainer(ctx context.Context, c container.Container) error {
	return s.put(ctx, kindContainer, string(c.ID), c)
}

// PutContainers remembers several at once: all or none.
func (s *Store) PutContainers(ctx context.Context, list ...container.Container) error {
	var all write
	for i, c := range list {
		body, err := json.Marshal(c)
		if err != nil {
			return err
		}
		w := write{kind: kindContainer, id: string(c.ID), body: body, result: make(chan error, 1)}
		if i == 0 {
			all = w
		} else {
			all.with = append(all.with, w)
		}
	}
	if all.result == nil {
		return nil
	}
	return s.write(ctx, all)
}

// NoteContainer remembers it past the end of this process, and past a power
// cut only if something is put after it.
func (s *Store) NoteContainer(ctx context.Context, c container.Container) error {
	body, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return s.write(ctx, write{kind: kindContainer, id: string(c.ID), body: body, note: true, result: make(chan error, 1)})
}

// DeleteContainer forgets it; one that is not there is no error.
func (s *Store) DeleteContainer(ctx context.Context, id container.ID) error {
	return s.remove(ctx, kindContainer, string(id))
}

// Containers gives all containers.
func (s *Store) Containers(ctx context.Context) ([]container.Container, error) {
	return all[container.Container](ctx, s, kindContainer)
}

// PutNetwork remembers a network.
func (s *Store) PutNetwork(ctx context.Context, n network.Network) error {
	return s.put(ctx, kindNetwork, n.ID, n)
}

// DeleteNetwork forgets it.
func (s *Store) DeleteNetwork(ctx context.Context, id string) error {
	return s.remove(ctx, kindNetwork, id)
}

// Networks gives all networks.
func (s *Store) Networks(ctx context.Context) ([]network.Network, error) {
	return all[network.Network](ctx, s, kindNetwork)
}

// PutVolume remembers a volume.
func (s *Store) PutVolume(ctx context.Context, v volume.Volume) error {
	return s.put(ctx, kindVolume, v.Name, v)
}

// DeleteVolume forgets it.
func (s *Store) DeleteVolume(ctx context.Context, name string) error {
	return s.remove(ctx, kindVolume, name)
}

// Volumes gives all volumes.
func (s *Store) Volumes(ctx context.Context) ([]volume.Volume, error) {
	return all[volume.Volume](ctx, s, kindVolume)
}

// PutApp remembers an application.
func (s *Store) PutApp(ctx context.Context, r app.Record) error {
	return s.put(ctx, kindApp, r.Name, r)
}

// DeleteApp forgets it; its revisions stay.
func (s *Store) DeleteApp(ctx context.Context, name string) error {
	return s.remove(ctx, kindApp, name)
}

// Apps gives all applications.
func (s *Store) Apps(ctx context.Context) ([]app.Record, error) {
	return all[app.Record](ctx, s, kindApp)
}

func revisionID(name string, number int) string { return fmt.Sprintf("%s/%06d", name, number) }

// PutRevision remembers what was wanted of an application.
func (s *Store) PutRevision(ctx context.Context, name string, r app.Revision) error {
	return s.put(ctx, kindRevision, revisionID(name, r.Number), r)
}

// DeleteRevision forgets it.
func (s *Store) DeleteRevision(ctx context.Context, name string, number int) error {
	return s.remove(ctx, kindRevision, revisionID(name, number))
}

// Revision gives one; fault.ErrNotFound where it is not there.
func (s *Store) Revision(ctx context.Context, name string, number int) (r app.Revision, err error) {
	list, err := some[app.Revision](ctx, s, "SELECT body FROM object WHERE kind = ? AND id = ?", kindRevision, revisionID(name, number))
	if err == nil && len(list) == 0 {
		return r, fault.NotFound("revision", revisionID(name, number))
	}
	if err != nil {
		return r, err
	}
	return list[0], nil
}

// RevisionNumbers gives those that are kept of an application, ascending.
func (s *Store) RevisionNumbers(ctx context.Context, name string) (list []int, err error) {
	rows, err := s.db.QueryContext(ctx, "SELECT id FROM object WHERE kind = ? AND id > ? AND id < ? ORDER BY id", kindRevision, name+"/", name+"0")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		n, err := strconv.Atoi(strings.TrimPrefix(id, name+"/"))
		if err != nil {
			return nil, fmt.Errorf("read revision %s: %w", id, err)
		}
		list = append(list, n)
	}
	return list, rows.Err()
}

// PutJob remembers when a job ran, and what became of it.
func (s *Store) PutJob(ctx context.Context, j app.JobRecord) error {
	return s.put(ctx, kindJob, j.App+"/"+j.Name, j)
}

// DeleteJob forgets it.
func (s *Store) DeleteJob(ctx context.Context, name, job string) error {
	return s.remove(ctx, kindJob, name+"/"+job)
}

// Jobs gives those of all applications.
func (s *Store) Jobs(ctx context.Context) ([]app.JobRecord, error) {
	return all[app.JobRecord](ctx, s, kindJob)
}

// Revisions gives those of an application, oldest first.
func (s *Store) Revisions(ctx context.Context, name string) ([]app.Revision, error) {
	return some[app.Revision](ctx, s, "SELECT body FROM object WHERE kind = ? AND id > ? AND id < ? ORDER BY id", kindRevision, name+"/", name+"0")
}

// Meta gives a value about the store itself, made by fresh where there is none.
func (s *Store) Meta(ctx context.Context, key string, fresh func() string) (string, error) {
	var body []byte
	err := s.db.QueryRowContext(ctx, "SELECT body FROM object WHERE kind = ? AND id = ?", kindMeta, key).Scan(&body)
	if errors.Is(err, sql.ErrNoRows) {
		v := fresh()
		return v, s.put(ctx, kindMeta, key, v)
	}
	if err != nil {
		return "", err
	}
	var v string
	err = json.Unmarshal(body, &v)
	return v, err
}
