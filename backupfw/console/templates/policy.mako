<%inherit file="base.mako"/>
<%namespace name="parts" file="parts.mako"/>
<%def name="title()">${shown.named(policy.display_name, policy.id)}</%def>
<% name = shown.named(policy.display_name, policy.id) %>\
<h1>${name}</h1>
% if policy.display_description:
<p>${policy.display_description}</p>
% endif
<p class="count">${shown.state('active' if policy.enabled else 'paused')}, project ${policy.project_id}.
% if policy.next_run_at is not None:
Next run ${shown.since(policy.next_run_at, now)}.
% endif
<small><code>${policy.id}</code></small></p>
<div class="row">
% for what, word in (('run', 'Run now'), ('pause', 'Pause'), ('resume', 'Resume')):
% if may[what] and (what == 'run' or (what == 'pause') == policy.enabled):
<form method="post" action="${base}/policies/${policy.id}/act"><button name="what" value="${what}" class="small">${word}</button></form>
% endif
% endfor
% if may['edit']:
<a class="button small quiet" href="${base}/policies/${policy.id}/edit">Edit</a>
% endif
<a class="button small quiet" href="${base}/policies/${policy.id}/preview">What is kept, and why</a>
% if may['delete']:
<a class="button small quiet" href="${base}/policies/${policy.id}/delete">Delete</a>
% endif
</div>
<section>
<h2>What it does</h2>
<div class="wide"><table><tbody>
<tr><th scope="row">Schedule</th><td><code>${policy.settings['schedule']['cron']}</code> in ${policy.settings['schedule']['timezone']}
<small>spread over ${shown.span(policy.settings['schedule']['jitter'])}; begins within ${policy.settings['schedule']['start_window']} min\
% if policy.settings['schedule']['completion_window']:
, complete within ${policy.settings['schedule']['completion_window']} min\
% endif
% if policy.max_concurrent:
; ${shown.counted(policy.max_concurrent, 'backup')} at once\
% endif
</small></td></tr>
<tr><th scope="row">Volumes</th><td>${shown.selected(policy.settings['selection'])}
% for volume_id in policy.settings['selection'].get('volume_ids', ()):
<small><a href="${base}/volumes/${volume_id}" title="${volume_id}">${shown.named(names.get(volume_id), volume_id)}</a></small>
% endfor
</td></tr>
<tr><th scope="row">Backups</th><td>${'incremental' if policy.settings['backup']['incremental'] else 'full'}\
% if policy.settings['backup']['full_every']:
, of ${policy.settings['backup']['full_every']} one full\
% endif
${f", in store {policy.settings['backup']['store']}" if policy.settings['backup']['store'] else ''}\
${f", frozen with {policy.settings['backup']['quiesce']}" if policy.settings['backup']['quiesce'] else ''}\
% for one in policy.settings['copy_to']:
<small>copy in ${one['store']}${f"; keeps {shown.kept(one['retention'])} there" if one.get('retention') else ''}</small>
% endfor
</td></tr>
<tr><th scope="row">Keeps</th><td>${shown.kept(policy.settings['retention'])}</td></tr>
</tbody></table></div>
</section>
% if weeks:
<section>
<h2>Next runs</h2>
<div class="wide"><table class="calendar">
<caption>Times of ${policy.settings['schedule']['timezone']}</caption>
<thead><tr>
% for day in ('Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun'):
<th scope="col">${day}</th>
% endfor
</tr></thead>
<tbody>
% for week in weeks:
<tr>
% for one in week:
<td${' class="blank"' if not one.known else '' | n}><time datetime="${one.day.isoformat()}">${one.day.strftime('%d %b')}</time>
% for run in one.runs[:4]:
<small>${run.strftime('%H:%M')}</small>
% endfor
% if len(one.runs) > 4:
<small>and ${len(one.runs) - 4} more</small>
% endif
</td>
% endfor
</tr>
% endfor
</tbody></table></div>
</section>
% endif
<section>
<h2>Runs</h2>
% if not runs:
<p>It has not run yet.</p>
% else:
<div class="wide"><table>
<thead><tr><th scope="col">Scheduled</th><th scope="col">Volume</th><th scope="col">Status</th><th scope="col">Backup</th><th scope="col">Took</th></tr></thead>
<tbody>
% for one in runs:
<tr><td>${shown.since(one.scheduled_at, now)}</td>
<th scope="row">
% if one.volume_id:
<a href="${base}/volumes/${one.volume_id}" title="${one.volume_id}">${shown.named(names.get(one.volume_id), one.volume_id)}</a>
% else:
search of new volumes
% endif
</th>
<td>${shown.state(one.status)}
% if one.quiesced:
<small>quiesced</small>
% endif
% if one.reason:
<small>${one.reason}</small>
% endif
</td>
<td>
% if one.backup_id and one.started_at is not None:
<a href="${base}/volumes/${one.volume_id}#backup-${one.backup_id}" title="${one.backup_id}">${one.backup_id[:8]}</a>
% else:
-
% endif
</td>
<td>${shown.span((one.ended_at - one.started_at).total_seconds()) if one.started_at and one.ended_at else '-'}</td></tr>
% endfor
</tbody></table></div>
% if more:
<p><a href="${base}/policies/${policy.id}?${shown.query(marker=runs[-1].id)}">Older</a></p>
% endif
% endif
</section>
<% wanted = form.body(form.filled(policy), policy) %>\
${parts.same(f'POST /v3/{policy.project_id}/backup-policies', form.written(wanted), form.command(wanted, f'backupfw policy create --project {policy.project_id}'), 'Such a policy')}
% if may['run']:
${parts.same(f'POST /v3/{policy.project_id}/backup-policies/{policy.id}/action', '{"run": {}}', f'backupfw policy run {policy.id}', 'Run now')}
% endif
% if may['pause']:
<% word = 'pause' if policy.enabled else 'resume' %>\
${parts.same(f'POST /v3/{policy.project_id}/backup-policies/{policy.id}/action', '{"' + word + '": {}}', f'backupfw policy {word} {policy.id}', word.capitalize())}
% endif
${parts.same(f'GET /v3/{policy.project_id}/backup-policies/{policy.id}/runs', None, f'backupfw policy runs {policy.id}', 'Its runs')}
