<%inherit file="base.mako"/>
<%def name="title()">Now</%def>
<h1>Now</h1>
${changing()}
% if failures is not None:
<section>
<h2>What failed last</h2>
% if not failures:
<p>Nothing that anybody was told of.</p>
% else:
<div class="wide"><table>
<thead><tr><th scope="col">When</th><th scope="col">What</th><th scope="col">Of</th>${'<th scope="col">Project</th>' if everywhere else '' | n}</tr></thead>
<tbody>
% for one in failures:
<tr><td>${shown.since(one.created_at, work.moment)}</td><td>${one.user_message}</td>
<td><code title="${one.resource_uuid}">${one.resource_uuid[:8]}</code></td>
% if everywhere:
<td>${one.project_id}</td>
% endif
</tr>
% endfor
</tbody></table></div>
% endif
</section>
% endif

<%def name="changing()">
<section id="changing" hx-get="${base}/now" hx-trigger="every ${'2s' if work.operations else '15s'}" hx-swap="outerMorph">
<p class="count">
% if work.running or work.waiting:
${work.running} running, ${work.waiting} waiting.
% else:
Nothing runs and nothing waits.
% endif
</p>
% if work.operations:
<div class="wide"><table>
<thead><tr><th scope="col">What</th><th scope="col">State</th><th scope="col">Progress</th><th scope="col"><span class="hidden">Action</span></th></tr></thead>
<tbody>
% for one in work.operations:
<tr id="task-${one.id}">
<th scope="row">${shown.OPERATIONS.get(one.kind, one.kind)}
% if one.volume_id:
<span class="of" title="${one.volume_id}">${shown.named(one.volume_name, one.volume_id)}</span>
% endif
<small>\
% if one.backup_id:
<span title="${one.backup_id}">${shown.named(one.backup_name, one.backup_id)}</span>${', ' if everywhere or one.store else ''}\
% endif
${f'project {one.project_id}' if everywhere else ''}${', ' if everywhere and one.store else ''}${f'store {one.store}' if one.store else ''}</small></th>
<td>${shown.state(one.waits_for or 'running')}
<small>
% if one.waits_for is None:
${f'on {one.owner}' if shows_workers and one.owner else ''}${f', lease {shown.span((one.lease_until - work.moment).total_seconds())}' if shows_workers and one.owner and one.lease_until else ''}${f', attempt {one.attempt}' if one.attempt > 1 else ''}
% else:
${shown.REASONS.get(one.waits_for, '')}, since ${shown.since(one.created_at, work.moment)}
% endif
${f'after: {one.reason}' if one.reason and everywhere else ''}
</small></td>
<td>
% if one.total:
<progress value="${min(one.done, one.total)}" max="${one.total}" aria-label="Progress of ${shown.named(one.volume_name, one.volume_id)}"></progress>
<small>${100 * min(one.done, one.total) // one.total} %, ${shown.sized(one.done)} of ${shown.sized(one.total)}\
% if one.rate:
, ${shown.sized(one.rate)}/s, ${shown.span(one.seconds_left)} left\
% endif
</small>
% endif
</td>
<td>
% if one.cancellable and may_cancel[one.project_id]:
<a class="button small quiet" id="cancel-${one.id}" href="${base}/now/${one.backup_id}/cancel" aria-label="Cancel the ${shown.OPERATIONS[one.kind].lower()} ${shown.named(one.volume_name, one.volume_id)}">Cancel</a>
% endif
</td>
</tr>
% endfor
</tbody></table></div>
% if work.running + work.waiting > len(work.operations):
<p><small>The first ${len(work.operations)}.</small></p>
% endif
% endif
</section>
</%def>
