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
<%
    what, volume = shown.OPERATIONS.get(one.kind, one.kind), shown.named(one.volume_name, one.volume_id)
%>\
<tr id="task-${one.id}">
<th scope="row">${what}
% if one.volume_id:
<span class="of" title="${one.volume_id}">${volume}</span>
% endif
<small>\
% if one.backup_id:
<span title="${one.backup_id}">${shown.named(one.backup_name, one.backup_id)}</span>
% endif
% if everywhere:
of project ${one.project_id}
% endif
% if one.store:
in store ${one.store}
% endif
</small></th>
% if one.waits_for is None:
<td><span class="state good">running</span><small>\
% if shows_workers and one.owner:
on ${one.owner}\
% if one.lease_until:
, lease ${shown.span((one.lease_until - work.moment).total_seconds())}\
% endif
% endif
% if one.attempt > 1:
 attempt ${one.attempt}\
% endif
% else:
<td>${shown.state(one.waits_for)}<small>${shown.REASONS.get(one.waits_for, '')}, since ${shown.since(one.created_at, work.moment)}\
% endif
% if one.reason and everywhere:
 after: ${one.reason}\
% endif
</small></td>
<td>
% if one.total:
<progress value="${min(one.done, one.total)}" max="${one.total}" aria-label="Progress of ${volume}"></progress>
<small>${shown.progress(one)}</small>
% endif
</td>
<td>
% if one.cancellable and may_cancel[one.project_id]:
<a class="button small quiet" id="cancel-${one.id}" href="${base}/now/${one.backup_id}/cancel${'?verification=true' if one.kind == 'backup.verify' else ''}" aria-label="Cancel the ${what.lower()} ${volume}">Cancel</a>
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
